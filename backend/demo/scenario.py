"""Five institutions that want the same skill, and the federation they form.

Three have one base model, at different ranks, and two have another one. That is the case in which
sharing pays (docs/results.md): with `relevance` the likes find each other by their own first
changes, without being told about models.
"""

from pydantic import SecretStr

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import StrategyName
from backend.contracts.federations import FederationCreate, FederationDetail
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.strategies import PARAMS, Params
from backend.contracts.training import TrainingConfig

GLOBAL_RANK = 16
FEDERATION = "Five institutions"
TASK = BuiltinTaskName.STORY_CLASSIFICATION
TRAINING = TrainingConfig(local_steps=8, learning_rate=1e-3, evaluate_every=5)
"""Evaluations of a whole test set take longer than eight steps: hence not in every round."""
_COMPARED: dict[StrategyName, Params] = {
    StrategyName.H2TUNE: H2TuneParams(aggregation="relevance"),
}


def params_of(strategy: StrategyName) -> Params:
    """What the demo runs a strategy with: its defaults, and for H2Tune what suits the clients."""
    return _COMPARED.get(strategy) or PARAMS.validate_python({"name": strategy})


def same_shape_alone(strategy: StrategyName) -> Params | None:
    """The control of a strategy: its adapter and steps without sharing; None where there is none.

    It tells what is owed to others from what is owed to the adapter's shape. `local_only` is
    neither: its adapter is a plain LoRA.
    """
    params = params_of(strategy)
    if isinstance(params, H2TuneParams):
        return params.model_copy(update={"control": "alone"})
    return None


def _member(name: str, model: BuiltinModelName, rank: int, seed: int) -> ClientRegister:
    return ClientRegister(
        enrolment_key=SecretStr(""),  # filled in when it registers
        name=name,
        base_model=BaseModelRef(source="builtin", id=model),
        lora_rank=rank,
        task=BUILTIN_TASK_KINDS[TASK],
        dataset=BuiltinDataset(task=TASK, seed=seed, num_train=32, num_validation=16, num_test=200),
    )


MEMBERS = (
    _member("north-clinic", BuiltinModelName.TINY_LLAMA, 16, 1),
    _member("east-hospital", BuiltinModelName.TINY_GEMMA, 16, 2),
    _member("south-lab", BuiltinModelName.TINY_LLAMA, 8, 3),
    _member("west-practice", BuiltinModelName.TINY_GEMMA, 16, 4),
    _member("city-institute", BuiltinModelName.TINY_LLAMA, 16, 5),
)


def prepare_federation(api: ApiClient) -> FederationDetail:
    """The federation of the five, found from an earlier demo or made now."""
    known = {client.name: client for client in api.clients.list()}
    wanted = [_free_or_same(member, known) for member in MEMBERS]
    missing = [member for member in wanted if member.name not in known]
    if missing:
        key = api.enrolment_keys.create(EnrolmentKeyCreate(label="demo", max_uses=len(missing)))
        for member in missing:
            registration = member.model_copy(update={"enrolment_key": SecretStr(key.secret)})
            registered = api.clients.register(registration)
            known[member.name] = registered.client
    members = [known[member.name] for member in wanted]
    return _federation_of(api, members)


def _free_or_same(member: ClientRegister, known: dict[str, Client]) -> ClientRegister:
    """The member under a name that is free, or that belongs to its like already."""
    name, number = member.name, 1
    while name in known and not _is_like(known[name], member):
        number += 1
        name = f"{member.name}-{number}"
    return member.model_copy(update={"name": name})


def _is_like(client: Client, member: ClientRegister) -> bool:
    return (client.base_model, client.lora_rank, client.dataset, client.execution) == (
        member.base_model,
        member.lora_rank,
        member.dataset,
        member.execution,
    )


def _federation_of(api: ApiClient, members: list[Client]) -> FederationDetail:
    client_ids = [client.id for client in members]
    taken = {federation.name: federation for federation in api.federations.list()}
    name, number = FEDERATION, 1
    while name in taken:
        detail = api.federations.get(taken[name].id)
        if detail.global_rank == GLOBAL_RANK and {c.id for c in detail.clients} == set(client_ids):
            return detail
        number += 1
        name = f"{FEDERATION} {number}"
    return api.federations.create(
        FederationCreate(
            name=name,
            description="Made by the demo: different models and ranks, one skill.",
            global_rank=GLOBAL_RANK,
            client_ids=client_ids,
        )
    )
