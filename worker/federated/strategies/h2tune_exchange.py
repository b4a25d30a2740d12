"""The round before round 1, in which the clients' models agree on codes of public texts.

Every client reads the n probe texts with its frozen base model. For each role k and side (input,
output), with U_j the whitened scores of the texts in layer j, it sends

    P_k = (1 / L*) sum_j U_j U_j^T    (n x n, symmetric, eigenvalues in [0, 1]),

which says what texts its model takes to be alike. The codes are the first R eigenvectors of
sum_i p_i P_ik with p_i client i's share of all examples: generalised CCA in its MAX-VAR form, which
needs no more than a sum, so that it may be formed behind masks. Here a client's training rows play
no part; what its model makes of public texts does (docs/security.md says what that reveals).

Where codes are written by their effect, one set of codes serves all linears, and U are the scores
of what the model finally says of each text: one matrix P = U U^T in place of 2 m.

Leaves the client: the upper triangle of each P, once. Bytes: 4 m n (n + 1) for m roles, or
2 n (n + 1). What comes back are codes, 8 m n R or 4 n R bytes, with the client's first plan.
"""

from collections.abc import Iterable, Iterator

import torch

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import Writing
from worker.federated.client_round import Stopwatch, take, traffic
from worker.federated.effect import summaries
from worker.federated.errors import InvalidConfigError, InvalidUpdateError
from worker.federated.gauge import (
    agreed_codes,
    agreement,
    probe_scores,
    record,
    score_count,
    scores_by_side,
)
from worker.federated.memory import peak_memory_bytes
from worker.federated.strategies.probe_texts import client_probes
from worker.federated.types import (
    AggregationReport,
    ClientPlan,
    ClientSpec,
    ClientUpdate,
    FederationSpec,
    LocalClient,
    Progress,
    ServerState,
    Tensors,
)
from worker.federated.wire import TensorSpec, require_tensors

GAUGE_ROUND = 0
"""Its number: training begins with round 1."""

SUMMARY = "summary"
"""The only side where codes are written by their effect: what a model finally says."""

_TOLERANCE = 1e-3
"""On eigenvalues of what was sent: fp32 and fixed-point sums round."""


def gauge_plans(
    state: ServerState, federation: FederationSpec, probe_kinds: list[str]
) -> dict[str, ClientPlan]:
    """One plan per client: the texts to read, or the kinds of tasks from which to make them."""
    return {
        client.client_id: ClientPlan(
            client_id=client.client_id,
            round_number=GAUGE_ROUND,
            kind=RoundKind.GAUGE,
            seed=state.meta["seed"],
            global_rank=federation.global_rank,
            num_slots=federation.num_slots,
            tensors={name: t for name, t in state.tensors.items() if name == "probes"},
            settings={"probe_kinds": probe_kinds},
        )
        for client in federation.clients
    }


def read_probes(plan: ClientPlan, client: LocalClient, writing: Writing) -> ClientUpdate:
    """A client's part of the round; it keeps nothing of it.

    Args:
        plan: of the round.
        client: with its base model as it came.
        writing: of the run; decides which scores enter the codes.

    Raises:
        InvalidConfigError: its model reads no text, or a text is too long for it.
    """
    watch = Stopwatch()
    client.on_progress(Progress("probing", 0, 1))
    with watch.measure(MetricName.SECONDS_LOAD):
        found = _agreements(plan, client, writing)
        shared = {f"agreement/{side}": _upper(matrix) for side, matrix in found}
    return ClientUpdate(
        client_id=plan.client_id,
        round_number=plan.round_number,
        num_examples=len(client.data.train),
        shared=shared,
        private={},
        metrics={
            **watch.metrics,
            **traffic(shared, plan),
            MetricName.NUM_EXAMPLES: float(len(client.data.train)),
            MetricName.PEAK_MEMORY_BYTES: float(peak_memory_bytes(client.model.device)),
        },
    )


def _agreements(
    plan: ClientPlan, client: LocalClient, writing: Writing
) -> Iterator[tuple[str, torch.Tensor]]:
    """P by side, (n, n) fp64 each."""
    probes = client_probes(plan, client)
    if writing == "effect":
        said = summaries(client.model, probes)
        yield SUMMARY, agreement([probe_scores(said, score_count(len(said), plan.global_rank))])
        return
    seen = record(client.model, probes)
    for side, scores in scores_by_side(client.model, seen, plan.global_rank).items():
        yield side, agreement(scores) / plan.num_slots


def agree(
    state: ServerState,
    federation: FederationSpec,
    updates: Iterable[ClientUpdate],
    num_probes: int,
    writing: Writing,
) -> tuple[ServerState, AggregationReport]:
    """The state with `codes/<role>/<side>`, (n, R) fp32, for every role that somebody has.

    Where codes are written by their effect: with `codes`, one set for all.

    Args:
        state: before round 1.
        federation: of the run.
        updates: of `read_probes`; read once.
        num_probes: n.
        writing: of the run.

    Raises:
        InvalidUpdateError: an update comes from elsewhere or twice, is no sum of projections, or
            there is none.
        InvalidConfigError: the texts are too few for the global rank.
    """
    clients = {client.client_id: client for client in federation.clients}
    totals: Tensors = {}  # upper triangles, fp64
    masses: dict[str, float] = {}
    num_clients = 0
    for update in updates:
        client = clients.pop(update.client_id, None)
        if client is None:
            raise InvalidUpdateError(
                f"The update of client {update.client_id!r} comes from outside the federation or "
                "came twice: refuse it."
            )
        for side, triangle in _checked(client, update, num_probes, writing).items():
            part = update.num_examples * triangle.double()
            totals[side] = totals[side] + part if side in totals else part
            masses[side] = masses.get(side, 0.0) + update.num_examples
        num_clients += 1
    if not totals:
        raise InvalidUpdateError("No client sent an update: a round needs at least one.")
    codes: Tensors = {}
    explained = []
    for side, total in totals.items():  # one whole matrix at a time: there may be many probes
        matrix = _whole(total / masses[side], num_probes)
        codes[side] = agreed_codes(matrix, federation.global_rank)
        explained.append(_explained(matrix, codes[side]))
    named = {"codes" if s == SUMMARY else f"codes/{s}": found for s, found in codes.items()}
    next_state = ServerState(tensors={**state.tensors, **named}, meta=dict(state.meta))
    values = {"agreement_explained": sum(explained) / len(explained)}
    return next_state, AggregationReport(num_clients, values)


def has_codes(state: ServerState) -> bool:
    """Whether the clients have agreed already."""
    return any(name == "codes" or name.startswith("codes/") for name in state.tensors)


def require_enough(num_probes: int, global_rank: int) -> None:
    """Refuses texts that cannot give so many codes, before anybody reads them.

    Raises:
        InvalidConfigError: names both numbers.
    """
    if num_probes <= global_rank:
        raise InvalidConfigError(
            f"There are {num_probes} probe texts, but global_rank is {global_rank}: add probe "
            "texts, or lower the global rank."
        )


def _checked(
    client: ClientSpec, update: ClientUpdate, num_probes: int, writing: Writing
) -> Tensors:
    """What one client sent, by `<role>/<side>` or `summary`: upper triangles, as they came."""
    origin = f"the update of client {update.client_id!r}"
    if update.num_examples < 1:
        raise InvalidUpdateError(f"{origin} states {update.num_examples} examples: need 1.")
    spec = TensorSpec((num_probes * (num_probes + 1) // 2,))
    sides = [f"{role}/{side}" for role in client.modules for side in ("in", "out")]
    if writing == "effect":
        sides = [SUMMARY]
    require_tensors(update.shared, {f"agreement/{side}": spec for side in sides}, origin)
    triangles = take("agreement", update.shared)
    for side, triangle in triangles.items():
        if not _is_mean_of_projections(_whole(triangle, num_probes)):
            raise InvalidUpdateError(
                f"In {origin}, 'agreement/{side}' has eigenvalues outside of [0, 1], which a mean "
                "of projections cannot have: start that client with the version of the platform."
            )
    return triangles


def _is_mean_of_projections(matrix: torch.Tensor) -> bool:
    """Whether all eigenvalues lie in [0, 1]: two Cholesky factorisations cost less than they do."""
    slack = _TOLERANCE * torch.eye(len(matrix), dtype=matrix.dtype)
    room = torch.eye(len(matrix), dtype=matrix.dtype) - matrix
    return all(int(torch.linalg.cholesky_ex(half + slack).info) == 0 for half in (matrix, room))


def _upper(matrix: torch.Tensor) -> torch.Tensor:
    """Upper triangle with diagonal, row by row, (n (n + 1) / 2,) fp32."""
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns].float()


def _whole(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Inverse of `_upper`, (n, n) fp64."""
    rows, columns = torch.triu_indices(size, size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[rows, columns] = packed.double()
    matrix[columns, rows] = packed.double()
    return matrix


def _explained(total: torch.Tensor, codes: torch.Tensor) -> float:
    """Share of the agreement that lies in the codes, in [0, 1]."""
    inside = (codes.double() * (total @ codes.double())).sum() / len(codes)
    return float(inside / total.trace())
