"""What strategies that write into the base weights have learned so far, and how it travels.

Every round a client starts from a fresh base model W, so the change C of it (one product of thin
factors per layer and role, see `low_rank`) must come from somewhere. The last round's part travels
to everybody (`latest/...`). What came before lies in a client's own store, and on the server for
those whose store is not up to date because they have missed a round (`earlier/...`). C grows side
by side, without rounding, until its rank reaches what the shape of W can need; from there on its
factors are recomputed without loss.
"""

from collections.abc import Callable, Iterable, Mapping

from backend.contracts.metrics import MetricName
from worker.federated.client_round import Stopwatch, below, take
from worker.federated.errors import InvalidUpdateError
from worker.federated.low_rank import LowRank, compact, factors_of, joined, products_of
from worker.federated.seeds import derive_seed
from worker.federated.strategies.lora_client import load_lora, lora_update, train_lora
from worker.federated.strategies.lora_exchange import factor_specs
from worker.federated.types import ClientPlan, ClientUpdate, LocalClient, ServerState, Tensors
from worker.federated.wire import require_tensors

HOLDERS = "holders"
"""In the state's `meta`: clients whose store has all of C but what the last round added."""

NUM_CHANGES = "num_changes"
"""In the state's `meta` and in plans: how many rounds have added to C.

Not the round's number less one: a group of which no client was drawn adds nothing in that round.
"""


def grown(
    state: ServerState,
    latest: Mapping[str, LowRank],
    senders: Iterable[str],
    factors: Tensors | None = None,
) -> ServerState:
    """The state after a round that adds to C.

    Args:
        state: before.
        latest: what the round adds, by role.
        senders: ids of the clients that took part, and so have all of C before it.
        factors: the strategy's own tensors of the next state.
    """
    earlier = _sum(take("earlier", state.tensors), take("latest", state.tensors))
    tensors = {
        **(factors or {}),
        **below("earlier", factors_of(earlier)),
        **below("latest", factors_of({role: compact(p) for role, p in latest.items()})),
    }
    meta = {HOLDERS: sorted(senders), NUM_CHANGES: state.meta.get(NUM_CHANGES, 0) + 1}
    return ServerState(tensors, {**state.meta, **meta})


def settings_of(state: ServerState) -> dict[str, int]:
    """What a plan says about C, so that a client sees whether its store lacks a part."""
    return {NUM_CHANGES: state.meta.get(NUM_CHANGES, 0)}


def outgoing(state: ServerState, client_id: str) -> Tensors:
    """What a client needs to have all of C; nothing before the end of the first round."""
    parts = ["latest"] if client_id in state.meta.get(HOLDERS, ()) else ["earlier", "latest"]
    return {
        name: tensor
        for part in parts
        for name, tensor in below(part, take(part, state.tensors)).items()
    }


def base_change(plan: ClientPlan, client: LocalClient) -> dict[str, LowRank]:
    """All of C by role; empty before anything was added.

    Raises:
        InvalidUpdateError: tensors do not fit the model, or the client's store lacks its part.
    """
    latest = take("latest", plan.tensors)
    earlier = take("earlier", plan.tensors)
    if latest:
        _require(latest, client, f"the plan of client {plan.client_id!r}")
    if earlier:
        _require(earlier, client, f"the plan of client {plan.client_id!r}")
        return _sum(earlier, latest)
    kept = take("base", client.private)
    if kept:
        _require(kept, client, f"the store of client {plan.client_id!r}")
    elif plan.settings.get(NUM_CHANGES, 0) > 1:
        raise InvalidUpdateError(
            f"The store of client {plan.client_id!r} lacks the changes of the base model from "
            "earlier rounds: restore the store, or start a new run."
        )
    return _sum(kept, latest)


def train_fresh(
    plan: ClientPlan,
    client: LocalClient,
    change_of: Callable[[ClientPlan, LocalClient], dict[str, LowRank]],
) -> ClientUpdate:
    """A round of strategies that add all of C to the base model and train new factors beside it.

    Args:
        plan: of this round.
        client: who trains.
        change_of: finds C, `base_change` or what reads another form of travelling first.

    Raises:
        InvalidUpdateError: see `base_change`.
        UnsupportedModelError: the base weights are quantised.
    """
    watch = Stopwatch()
    with watch.measure(MetricName.SECONDS_LOAD):
        change = change_of(plan, client)
        seed = derive_seed(plan.seed, plan.client_id, plan.round_number, "factors")
        lora = load_lora(plan, client, seed=seed)
        lora.add_to_base(change)
    trained = train_lora(plan, client, lora, watch)
    private = {**kept_change(change), **below("moments", trained.head_moments)}
    return lora_update(plan, client, lora, trained, shared=lora.stacked(), private=private)


def kept_change(change: Mapping[str, LowRank]) -> Tensors:
    """C among what the client keeps."""
    return below("base", factors_of(change))


def _sum(earlier: Tensors, latest: Tensors) -> dict[str, LowRank]:
    """Both together, either of which may be empty."""
    parts = [products_of(tensors) for tensors in (earlier, latest) if tensors]
    roles = parts[0] if parts else {}
    return {role: compact(joined([part[role] for part in parts])) for role in roles}


def _require(tensors: Tensors, client: LocalClient, origin: str) -> None:
    """Ranks may differ between roles; everything else must fit the client's model."""
    expected = factor_specs(client.spec, 0)
    for role in client.spec.modules:
        factor = tensors.get(f"A/{role}")
        if factor is not None and factor.dim() == 3:
            specs = factor_specs(client.spec, factor.shape[1])
            expected |= {name: specs[name] for name in (f"A/{role}", f"B/{role}")}
    require_tensors(tensors, expected, origin)
