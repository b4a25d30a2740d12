"""Which public texts a federation's models read for their gauge, and how they get to the clients.

A federation may have probe texts of its own. Else they are prompts of the kinds of tasks in it,
made by the built-in generators: the same on every machine, so that only the kinds have to travel.
"""

from collections.abc import Iterable, Iterator

import torch

from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import TaskKind
from backend.contracts.probe_sets import NUM_BUILT_IN
from worker.federated.errors import InvalidConfigError
from worker.federated.probes import ProbeBatch, pack_texts, probe_batches, unpack_texts
from worker.federated.tasks.generators import generate
from worker.federated.tasks.prompts import build_prompt
from worker.federated.types import (
    ClientPlan,
    ClientSpec,
    FederationSpec,
    LocalClient,
    ServerState,
    Tensors,
)

PROBE_SEED = 20_240
MAX_PROBE_TOKENS = 512

_FOR_ALL = frozenset({"codes", "probes"})

_PUBLIC_TASKS = {
    TaskKind.FILL_IN: BuiltinTaskName.ARITHMETIC_FILL_IN,
    TaskKind.CHOICE: BuiltinTaskName.ARITHMETIC_CHOICE,
    TaskKind.PROGRAM: BuiltinTaskName.ARITHMETIC_PROGRAM,
    TaskKind.CLASSIFICATION: BuiltinTaskName.STORY_CLASSIFICATION,
}


def can_be_probed(kind: TaskKind) -> bool:
    """Whether clients with this kind of task read texts, so that there are probes for them."""
    return kind in _PUBLIC_TASKS


def public_prompts(kinds: Iterable[str]) -> list[str]:
    """Prompts without answers, the same on every machine, `NUM_BUILT_IN` shared among the kinds."""
    chosen = sorted(set(kinds))
    prompts: list[str] = []
    for value in chosen:
        kind = TaskKind(value)
        count = NUM_BUILT_IN // len(chosen)
        dataset = BuiltinDataset(
            task=_PUBLIC_TASKS[kind], seed=PROBE_SEED, num_train=count, num_validation=0, num_test=1
        )
        rows = [row for row in generate(dataset) if row.split == "train"]
        prompts += [build_prompt(kind, row) for row in rows]
    return prompts


def task_kinds(federation: FederationSpec) -> list[str]:
    """Kinds of tasks in a federation, each once, in alphabetical order."""
    return sorted({client.task.value for client in federation.clients})


def federation_texts(federation: FederationSpec) -> list[str]:
    """The probe texts of a federation: its own, or public prompts of its kinds of tasks."""
    return list(federation.probes) or public_prompts(task_kinds(federation))


def own_texts(federation: FederationSpec) -> Tensors:
    """What of the probe texts has to travel: `probes`, uint8; empty without texts of its own."""
    return {"probes": pack_texts(federation.probes)} if federation.probes else {}


def gauge_of(state: ServerState, client: ClientSpec) -> Tensors:
    """What a client needs to make its factors: the codes, and probe texts that have to travel.

    Codes of roles that it does not have stay away: they say something of those who have them.
    """
    own = tuple(f"codes/{role}/" for role in client.modules)
    return {
        name: tensor
        for name, tensor in state.tensors.items()
        if name in _FOR_ALL or name.startswith(own)
    }


def is_of_gauge(name: str) -> bool:
    """Whether a tensor of a plan or state belongs to `gauge_of`."""
    return name in _FOR_ALL or name.startswith("codes/")


def client_probes(plan: ClientPlan, client: LocalClient) -> Iterator[ProbeBatch]:
    """The probe texts in the tokens of a client's model.

    Args:
        plan: carries texts as `probes`, or the kinds of tasks in its settings as `probe_kinds`.
        client: whose tokenizer reads them.

    Raises:
        InvalidConfigError: its model reads no text, or a text is too long for it.
    """
    tokenizer = client.objective.tokenizer
    if tokenizer is None:
        raise InvalidConfigError(
            f"gauge is 'probe', but the model of client {plan.client_id!r} reads no text: choose "
            "another gauge."
        )
    packed: torch.Tensor | None = plan.tensors.get("probes")
    texts = public_prompts(plan.settings["probe_kinds"]) if packed is None else unpack_texts(packed)
    return probe_batches(tokenizer, texts, "text", max_length=MAX_PROBE_TOKENS)
