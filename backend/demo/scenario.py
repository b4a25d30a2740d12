"""Three institutions that differ in everything, and the federation they form."""

from pydantic import SecretStr

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.federations import FederationCreate, FederationDetail
from backend.contracts.training import TrainingConfig

GLOBAL_RANK = 16
FEDERATION = "Three institutions"
TRAINING = TrainingConfig(local_steps=40)


def _member(
    name: str, model: BuiltinModelName, rank: int, task: BuiltinTaskName, seed: int
) -> ClientRegister:
    return ClientRegister(
        enrolment_key=SecretStr(""),  # filled in when it registers
        name=name,
        base_model=BaseModelRef(source="builtin", id=model),
        lora_rank=rank,
        task=BUILTIN_TASK_KINDS[task],
        dataset=BuiltinDataset(task=task, seed=seed, num_train=64, num_validation=16, num_test=96),
    )


MEMBERS = (
    _member("north-clinic", BuiltinModelName.TINY_LLAMA, 4, BuiltinTaskName.ARITHMETIC_FILL_IN, 1),
    _member(
        "east-hospital", BuiltinModelName.TINY_GEMMA, 8, BuiltinTaskName.STORY_CLASSIFICATION, 2
    ),
    _member("south-lab", BuiltinModelName.TINY_QWEN2, 16, BuiltinTaskName.ARITHMETIC_PROGRAM, 3),
)


def prepare_federation(api: ApiClient) -> FederationDetail:
    """The federation of the three, found from an earlier demo or made now."""
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
            description="Made by `fedbraid demo`: different models, ranks and tasks.",
            global_rank=GLOBAL_RANK,
            client_ids=client_ids,
        )
    )
