"""The probe gauge inside H2Tune: codes on the server once, factors on every client by itself.

The server makes public prompts of the kinds of tasks in the federation, and one built-in model says
what distinguishes them: its principal components are the codes. A client that has no factors yet
makes the same prompts, reads them with its own model, and fits A and B (`worker.federated.gauge`).
Codes go down once, 4 n R bytes; nothing goes up, and who joins late gets the same gauge.
"""

from collections.abc import Iterable, Mapping
from functools import cache

import torch

from backend.contracts.base_models import BaseModelRef, BuiltinModelName
from backend.contracts.datasets import BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import TaskKind
from backend.contracts.params.h2tune import H2TuneParams
from worker.federated.adapters.geometry import make_geometry
from worker.federated.base_models import load_base_model
from worker.federated.errors import InvalidConfigError
from worker.federated.gauge import Factors, gauged_factors, record, reference_codes
from worker.federated.probes import probe_batches
from worker.federated.roles import adapted_modules
from worker.federated.strategies.h2tune_codes import code_energies
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


def client_factors(plan: ClientPlan, client: LocalClient, params: H2TuneParams) -> Tensors:
    """What a client starts with: its factors in the common gauge, and which codes it holds.

    Args:
        plan: carries `codes` and, in its settings, the kinds of tasks they belong to.
        client: with its base model as it came, without an adapter.
        params: layout, sparsity and how codes are selected.

    Returns:
        `factors/A/<module>` (factor rank, in), `factors/B/<module>` (out, factor rank) and, in
        the `block` layout, `scores/<role>` (R,), highest for the codes that it holds.

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
    codes = plan.tensors["codes"]
    seen = record(client.model, batches)
    modules = adapted_modules(client.model)
    found = {module.name: gauged_factors(seen[module.name], codes, codes) for module in modules}
    geometry = make_geometry(
        params.layout, client.spec.lora_rank, plan.global_rank, params.sparsity
    )
    held = torch.arange(geometry.factor_rank)
    tensors: Tensors = {}
    if geometry.layout == "block":
        scores = _code_scores(plan, client, params, found)
        order = scores.argsort(descending=True, stable=True)
        # The codes in use first, in ascending order as in the middle matrix, then spare ones.
        spare = order[geometry.num_selected : geometry.factor_rank]
        held = torch.cat([geometry.select(scores), spare])
        tensors.update({f"scores/{module.role}": scores.clone() for module in modules})
    for module in modules:
        factors = found[module.name]
        tensors[f"factors/A/{module.name}"] = factors.in_factor[held].contiguous()
        tensors[f"factors/B/{module.name}"] = factors.out_factor[:, held].contiguous()
    return tensors


def _code_scores(
    plan: ClientPlan,
    client: LocalClient,
    params: H2TuneParams,
    factors: Mapping[str, Factors],
) -> torch.Tensor:
    """Scores of the codes, (R,), falling evenly from 1 to -1 in order of their importance."""
    falling = torch.linspace(1.0, -1.0, plan.global_rank)
    if params.code_selection == "leading" or client.spec.lora_rank == plan.global_rank:
        return falling  # codes come in order of their variance
    order = code_energies(plan, client, factors).argsort(descending=True, stable=True)
    return torch.empty_like(falling).index_copy(0, order, falling)
