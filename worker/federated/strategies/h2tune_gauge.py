"""The probe gauge inside H2Tune: codes on the server once, factors on every client by itself.

The server makes public prompts of the kinds of tasks in the federation, and one built-in model says
what distinguishes them: its principal components are the codes. A client that has no factors yet
makes the same prompts, reads them with its own model, and fits A and B (`worker.federated.gauge`).
Codes go down once, 4 n R bytes; nothing goes up, and who joins late gets the same gauge.
"""

from collections.abc import Iterable
from functools import cache

import torch

from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import TaskKind
from worker.federated.base_models import load_base_model
from worker.federated.errors import InvalidConfigError
from worker.federated.gauge import gauged_factors, record, reference_codes
from worker.federated.probes import probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.tasks.generators import generate
from worker.federated.tasks.prompts import build_prompt
from worker.federated.types import ClientPlan, FederationSpec, LocalClient, Tensors

REFERENCE = BaseModelRef(source="builtin", id=BuiltinModelName.TINY_LLAMA)
NUM_PROBES = 600
PROBE_SEED = 20_240
MAX_PROBE_TOKENS = 512

_PUBLIC_TASKS = {
    TaskKind.FILL_IN: BuiltinTaskName.ARITHMETIC_FILL_IN,
    TaskKind.CHOICE: BuiltinTaskName.ARITHMETIC_CHOICE,
    TaskKind.PROGRAM: BuiltinTaskName.ARITHMETIC_PROGRAM,
    TaskKind.CLASSIFICATION: BuiltinTaskName.STORY_CLASSIFICATION,
}


def can_be_probed(kind: TaskKind) -> bool:
    """Whether there are public prompts for a kind of task."""
    return kind in _PUBLIC_TASKS


def public_prompts(kinds: Iterable[str]) -> list[str]:
    """Prompts without answers, the same on every machine, `NUM_PROBES` shared among the kinds."""
    chosen = sorted(set(kinds))
    prompts: list[str] = []
    for value in chosen:
        kind = TaskKind(value)
        count = NUM_PROBES // len(chosen)
        dataset = BuiltinDataset(
            task=_PUBLIC_TASKS[kind], seed=PROBE_SEED, num_train=count, num_validation=0, num_test=1
        )
        rows = [row for row in generate(dataset) if row.split == "train"]
        prompts += [build_prompt(kind, row) for row in rows]
    return prompts


def federation_codes(federation: FederationSpec) -> torch.Tensor:
    """Codes of the prompts for a federation's kinds of tasks, (n, R) fp32.

    Raises:
        InvalidConfigError: the global rank exceeds the width of the reference model.
    """
    kinds = sorted({client.task.value for client in federation.clients})
    return _codes(tuple(kinds), federation.global_rank).clone()


@cache
def _codes(kinds: tuple[str, ...], global_rank: int) -> torch.Tensor:
    """The same for every federation of these kinds of tasks, and some seconds of work."""
    model, tokenizer = load_base_model(REFERENCE, device=torch.device("cpu"), dtype=torch.float32)
    prompts = public_prompts(kinds)
    pooled = []
    with torch.no_grad():
        for batch in probe_batches(tokenizer, prompts, "text", max_length=MAX_PROBE_TOKENS):
            hidden = model.base_model(**batch.inputs).last_hidden_state
            pooled.append(batch.pooling @ hidden.flatten(0, 1))
    return reference_codes(torch.cat(pooled), global_rank)


def client_factors(plan: ClientPlan, client: LocalClient) -> Tensors:
    """A client's first factors, `factors/A/<module>` (r, in) and `factors/B/<module>` (out, r).

    Args:
        plan: carries `codes` and, in its settings, the kinds of tasks they belong to.
        client: with its base model as it came, without an adapter.

    Raises:
        InvalidConfigError: its model reads no text, or the plan has no codes.
    """
    tokenizer = client.objective.tokenizer
    if tokenizer is None or "codes" not in plan.tensors:
        raise InvalidConfigError(
            f"gauge is 'probe', but the model of client {plan.client_id!r} reads no text or its "
            "plan has no codes: choose another gauge."
        )
    batches = probe_batches(
        tokenizer,
        public_prompts(plan.settings["probe_kinds"]),
        "text",
        max_length=MAX_PROBE_TOKENS,
    )
    codes, rank = plan.tensors["codes"], client.spec.lora_rank
    seen = record(client.model, batches)
    factors: Tensors = {}
    for module in adapted_modules(client.model):
        found = gauged_factors(seen[module.name], codes, codes)
        # The codes come in order of importance, and a client of rank r holds the first r.
        factors[f"factors/A/{module.name}"] = found.in_factor[:rank].contiguous()
        factors[f"factors/B/{module.name}"] = found.out_factor[:, :rank].contiguous()
    return factors
