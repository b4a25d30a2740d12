"""A hostile client over real HTTP, against real processes: clipped, refused, and shown."""

import time
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
import torch

from backend.api_client import ApiClient
from backend.contracts.agent import AgentResult
from backend.contracts.base_models import BaseModelRef, ModuleShape
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import EventKind, Execution, RoundKind, RunStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.metrics import MetricName
from backend.contracts.params.lora import FfaLoraParams
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.runs import LiveRun, RunCreate
from backend.contracts.training import TrainingConfig
from tests.running_platform import RunningPlatform, run_platform
from worker.federated.base_models import load_base_model
from worker.federated.roles import architecture_of, module_shapes
from worker.federated.types import ClientUpdate
from worker.federated.wire import decode_plan, encode_update

MODEL = BaseModelRef(source="builtin", id="tiny_llama")
TASK = BuiltinTaskName.ARITHMETIC_FILL_IN
NUM_EXAMPLES = 8


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    with run_platform(tmp_path / "home") as running:
        yield running


def register(api: ApiClient) -> tuple[list[UUID], str]:
    """Two honest managed clients and a hostile remote one, last, with its credential."""
    secret = api.enrolment_keys.create(EnrolmentKeyCreate(label="mixed", max_uses=3)).secret
    common = {
        "enrolment_key": secret,
        "base_model": MODEL,
        "lora_rank": 2,
        "task": BUILTIN_TASK_KINDS[TASK],
    }
    data = {"task": TASK, "num_train": NUM_EXAMPLES, "num_validation": 4, "num_test": 4}
    ids = [
        api.clients.register(
            ClientRegister(
                name=f"honest-{seed}", dataset=BuiltinDataset(seed=seed, **data), **common
            )
        ).client.id
        for seed in (1, 2)
    ]
    model, _ = load_base_model(MODEL, device=torch.device("cpu"), dtype=torch.float32)
    hostile = api.clients.register(
        ClientRegister(
            name="hostile",
            execution=Execution.REMOTE,
            architecture=architecture_of(model),
            modules={
                role: ModuleShape(in_features=m.in_features, out_features=m.out_features)
                for role, m in module_shapes(model).items()
            },
            num_examples=NUM_EXAMPLES,
            **common,
        )
    )
    return [*ids, hostile.client.id], hostile.credential


def attack_until_it_ends(api: ApiClient, hostile: ApiClient, run_id: UUID) -> LiveRun:
    """Sends noise, then a thousand times as much, and nothing in the delivery."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        work = hostile.agent.lease("hostile")
        if work is not None and work.kind is RoundKind.DELIVER:
            hostile.agent.finish(work.client_update_id, AgentResult(fence=work.fence))
        elif work is not None:
            plan = decode_plan(b"".join(hostile.agent.stream_plan(work.client_update_id)))
            scale = 1.0 if plan.round_number == 1 else 1000.0
            noise = {n: scale * torch.randn(t.shape) for n, t in plan.tensors.items()}
            update = ClientUpdate(plan.client_id, plan.round_number, NUM_EXAMPLES, noise, {}, {})
            receipt = hostile.agent.upload_shared(
                work.client_update_id, work.fence, encode_update(update)
            )
            result = AgentResult(fence=work.fence, shared_sha256=receipt.sha256)
            hostile.agent.finish(work.client_update_id, result)
        live = api.runs.live(run_id)
        if live.run.status.is_terminal:
            return live
        time.sleep(0.2)
    raise AssertionError(f"the run did not end: {live.run}")


@pytest.mark.timeout(600)  # six processes start
def test_a_hostile_client_is_clipped_then_refused_and_shown(platform: RunningPlatform) -> None:
    with platform.sign_in() as api:
        members, credential = register(api)
        federation = api.federations.create(
            FederationCreate(name="mixed", global_rank=2, client_ids=members)
        )
        settings = Robustness(rule="norm_clipping", clip_norm=1, max_update_norm=2000)
        create = RunCreate(
            strategy=FfaLoraParams(),
            num_rounds=2,
            training=TrainingConfig(local_steps=2, max_eval_examples=2),
            robustness=settings,
            round_policy=RoundPolicy(min_clients=2),
        )
        run = api.federations.create_run(federation.id, create)
        assert run.robustness == settings
        api.runs.start(run.id)
        with ApiClient(platform.api_url, credential) as hostile:
            live = attack_until_it_ends(api, hostile, run.id)
    assert live.run.status is RunStatus.COMPLETED, f"{live.run.error}\n{platform.log()}"
    honest, outsider = set(members[:2]), members[2]

    def measured(name: MetricName, number: int) -> dict[UUID | None, float]:
        points = [p for p in live.metrics if p.name is name and p.round_number == number]
        return {point.client_id: point.value for point in points}

    scores = measured(MetricName.OUTLIER_SCORE, 1)
    assert {client for client, score in scores.items() if score > 3.5} == {outsider}
    kept = measured(MetricName.KEPT_SHARE, 1)
    assert kept[outsider] == pytest.approx(1 / measured(MetricName.SENT_NORM, 1)[outsider])
    assert kept[outsider] < 0.05 < min(kept[client] for client in honest)
    events = [event for event in live.events if event.kind is EventKind.UPDATE_REFUSED]
    assert [(event.client_id, event.round_number, event.data["code"]) for event in events] == [
        (outsider, 2, "update_norm_exceeded")
    ]
    assert measured(MetricName.CONTRIBUTION, 2).keys() == honest
