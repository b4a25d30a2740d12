from collections.abc import Iterator

import httpx
import pytest
from starlette.testclient import TestClient

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import StrategyName, TaskKind
from backend.contracts.federations import FederationCreate
from backend.demo.scenario import (
    FEDERATION,
    GLOBAL_RANK,
    TRAINING,
    params_of,
    prepare_federation,
    same_shape_alone,
)
from tests.factories import Caller


class _InProcess(httpx.BaseTransport):
    """The network between the API client and the application of the tests."""

    def __init__(self, application: TestClient):
        self._application = application

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self._application.request(
            request.method,
            str(request.url.copy_with(host="testserver")),
            content=request.read(),
            headers={
                name: value for name, value in request.headers.items() if name.lower() != "host"
            },
        )
        return httpx.Response(answer.status_code, content=answer.content)


@pytest.fixture
def api(admin: Caller) -> Iterator[ApiClient]:
    with ApiClient("http://testserver", admin.token, transport=_InProcess(admin.http)) as client:
        yield client


def test_five_clients_two_models_two_ranks_one_skill(api: ApiClient) -> None:
    federation = prepare_federation(api)
    assert federation.global_rank == GLOBAL_RANK
    seen = [(c.name, c.architecture.family, c.lora_rank, c.task) for c in federation.clients]
    assert sorted(seen) == [
        ("city-institute", "llama", 16, TaskKind.CLASSIFICATION),
        ("east-hospital", "gemma", 16, TaskKind.CLASSIFICATION),
        ("north-clinic", "llama", 16, TaskKind.CLASSIFICATION),
        ("south-lab", "llama", 8, TaskKind.CLASSIFICATION),
        ("west-practice", "gemma", 16, TaskKind.CLASSIFICATION),
    ]
    (key,) = api.enrolment_keys.list()
    assert (key.max_uses, key.num_uses) == (5, 5)


def test_everybody_has_data_of_their_own(api: ApiClient) -> None:
    datasets = [client.dataset for client in prepare_federation(api).clients]
    assert all(isinstance(dataset, BuiltinDataset) for dataset in datasets)
    assert len(set(datasets)) == len(datasets) == 5


def test_the_control_differs_from_what_it_controls_in_sharing_alone() -> None:
    shared, alone = params_of(StrategyName.H2TUNE), same_shape_alone(StrategyName.H2TUNE)
    assert alone is not None
    assert shared.model_dump() | {"control": "alone"} == alone.model_dump()
    assert same_shape_alone(StrategyName.FEDSA_LORA) is None


def test_accuracy_is_measured_at_the_end_whatever_is_left_out() -> None:
    assert 10 % TRAINING.evaluate_every == 0  # rounds of a demo


def test_a_second_demo_finds_what_the_first_one_made(api: ApiClient) -> None:
    first = prepare_federation(api)
    assert prepare_federation(api).id == first.id
    assert len(list(api.clients.list())) == 5
    assert len(list(api.enrolment_keys.list())) == 1


def test_names_that_others_have_are_left_to_them(api: ApiClient) -> None:
    key = api.enrolment_keys.create(EnrolmentKeyCreate(label="other"))
    other = api.clients.register(
        ClientRegister(
            enrolment_key=key.secret,
            name="south-lab",
            base_model=BaseModelRef(source="builtin", id="tiny_llama"),
            lora_rank=2,
            task=TaskKind.FILL_IN,
            dataset=BuiltinDataset(task=BuiltinTaskName.ARITHMETIC_FILL_IN, num_train=8),
        )
    )
    api.federations.create(FederationCreate(name=FEDERATION, client_ids=[other.client.id]))
    federation = prepare_federation(api)
    assert federation.name == f"{FEDERATION} 2"
    assert {client.name for client in federation.clients} == {
        *("north-clinic", "east-hospital", "south-lab-2", "west-practice", "city-institute"),
    }
