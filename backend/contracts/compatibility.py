"""Which clients a strategy can serve together, decided from their shapes alone.

The same functions answer in the worker before a run begins, in the API before a run is made, and
in the browser before anybody presses start: none of them needs a model or a database.

Reading `Capabilities`: without `rank` all LoRA ranks must be equal, without `depth` all numbers of
layers, and without `width` the families, hidden sizes and shapes of the adapted modules, because
matrices of those sizes are added up. A strategy of `GroupableParams` that is told to group serves
any clients: it runs inside groups in which all that is the same. Tasks never make a refusal, since
the sums exist for any tasks, but `cautions` names them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from backend.contracts.base_models import Architecture
from backend.contracts.clients import Client
from backend.contracts.enums import StrategyName, TaskKind
from backend.contracts.h2tune_defaults import exchanges_codes
from backend.contracts.params.base import GroupableParams
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.strategies import (
    Capabilities,
    Params,
    describe_strategies,
    info_of,
    is_grouped,
)

MAX_SUGGESTIONS = 4

Shapes = Mapping[str, tuple[int, int]]
"""Adapted module role -> (in_features, out_features)."""


@dataclass(frozen=True, slots=True)
class Participant:
    """What of a client decides whether a strategy can serve it."""

    client_id: str
    name: str
    architecture: Architecture
    lora_rank: int
    task: TaskKind
    modules: Shapes | None = None  # None: not known here, equal architectures are taken for equal


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """Why a strategy cannot serve a client: a whole sentence with the remedy."""

    client_id: str
    client_name: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Trait:
    """Something that may have to be equal."""

    name: str
    allowed_by: Callable[[Capabilities], bool]
    of: Callable[[Participant], object]
    show: Callable[[Participant], str]


_TRAITS = (
    _Trait("LoRA rank", lambda c: c.rank, lambda p: p.lora_rank, lambda p: str(p.lora_rank)),
    _Trait(
        "number of layers",
        lambda c: c.depth,
        lambda p: p.architecture.num_layers,
        lambda p: str(p.architecture.num_layers),
    ),
    _Trait(
        "family",
        lambda c: c.width,
        lambda p: p.architecture.family,
        lambda p: p.architecture.family,
    ),
    _Trait(
        "hidden size",
        lambda c: c.width,
        lambda p: p.architecture.hidden_size,
        lambda p: str(p.architecture.hidden_size),
    ),
)
_MODULES = _Trait(
    "shapes of the adapted modules",
    lambda c: c.width,
    lambda p: tuple(sorted((p.modules or {}).items())),
    lambda p: ", ".join(f"{role} {m[1]}x{m[0]}" for role, m in sorted((p.modules or {}).items())),
)


def participant_of(client: Client) -> Participant:
    """A client of the API, as far as its shape goes."""
    modules: Shapes | None = None
    if client.modules is not None:
        modules = {role: (m.in_features, m.out_features) for role, m in client.modules.items()}
    return Participant(
        client_id=str(client.id),
        name=client.name,
        architecture=client.architecture,
        lora_rank=client.lora_rank,
        task=client.task,
        modules=modules,
    )


def refusals(params: Params, clients: Sequence[Participant]) -> list[Incompatibility]:
    """Clients that this strategy cannot serve together with the others; empty: all are fine.

    Args:
        params: the strategy's own parameters; with `group_by` set nobody is refused.
        clients: all members, in any order.

    Returns:
        See `incompatibilities`.
    """
    if is_grouped(params):
        return []
    info = info_of(params.name)
    groupable = isinstance(params, GroupableParams)
    return incompatibilities(info.title, info.capabilities, clients, groupable=groupable)


def incompatibilities(
    title: str, capabilities: Capabilities, clients: Sequence[Participant], *, groupable: bool
) -> list[Incompatibility]:
    """Clients that differ from the majority in something that has to be equal.

    Args:
        title: of the strategy, for the sentences.
        capabilities: which differences it handles.
        clients: all members, in any order.
        groupable: whether `group_by` may be suggested.

    Returns:
        One entry a client, in order of client id, so that every program says the same. Among
        equally large parts the one with the smallest client id counts as the majority.
    """
    traits = _required(capabilities, clients)
    parts = _parts(traits, clients)
    if len(parts) < 2:
        return []
    majority = max(parts, key=len)  # the first of the largest
    found = []
    for client in sorted(clients, key=lambda c: c.client_id):
        different = [trait for trait in traits if trait.of(client) != trait.of(majority[0])]
        if different:
            reason = _sentence(title, different, client, majority[0], groupable=groupable)
            found.append(Incompatibility(client.client_id, client.name, reason))
    return found


def cautions(params: Params, clients: Sequence[Participant]) -> list[str]:
    """What is allowed but deserves a word before the start: whole sentences."""
    info = info_of(params.name)
    found = []
    tasks = sorted({client.task.value for client in clients})
    if len(tasks) > 1 and not info.capabilities.task:
        found.append(
            f"{info.title} averages adapters of different tasks ({', '.join(tasks)}), which it was "
            "not made for: compare with the local-only baseline."
        )
    wants_exchange = isinstance(params, H2TuneParams) and params.codes == "exchange"
    if wants_exchange and not exchanges_codes(params, [client.task for client in clients]):
        found.append(
            "`codes` is `exchange`, but nothing is exchanged, because the gauge of this run is not "
            "`probe`: set `gauge` to `probe`, or leave `codes` as it is by default."
        )
    if is_grouped(params):
        found += [
            f"{members[0].name!r} has no other client of its shape: in groups of equal "
            "architecture it trains alone, and nothing is shared with it."
            for members in groups(params, clients)
            if len(members) == 1
        ]
    return found


def groups(params: Params, clients: Sequence[Participant]) -> list[list[Participant]]:
    """The clients in parts within which all that this strategy needs is equal.

    Members and parts are in order of client id. Without grouping there is one part with everybody.
    """
    if not is_grouped(params):
        return [sorted(clients, key=lambda c: c.client_id)] if clients else []
    capabilities = info_of(params.name).capabilities
    by_architecture = capabilities.model_copy(update={"depth": False, "width": False})
    return _parts(_required(by_architecture, clients), clients)


def _required(capabilities: Capabilities, clients: Sequence[Participant]) -> tuple[_Trait, ...]:
    """What has to be equal; shapes of modules only where they are known of every client."""
    known = all(client.modules is not None for client in clients)
    traits = (*_TRAITS, _MODULES) if known else _TRAITS
    return tuple(trait for trait in traits if not trait.allowed_by(capabilities))


def _parts(traits: Sequence[_Trait], clients: Sequence[Participant]) -> list[list[Participant]]:
    parts: dict[tuple[object, ...], list[Participant]] = {}
    for client in sorted(clients, key=lambda c: c.client_id):
        parts.setdefault(tuple(trait.of(client) for trait in traits), []).append(client)
    return list(parts.values())


def _sentence(
    title: str,
    different: Sequence[_Trait],
    client: Participant,
    other: Participant,
    *,
    groupable: bool,
) -> str:
    differences = [f"{t.name} ({t.show(client)} instead of {t.show(other)})" for t in different]
    only_rank = all(trait.name == "LoRA rank" for trait in different)
    remedies = [
        f"register it anew with rank {other.lora_rank}" if only_rank else "leave it out",
        *_suggested(different),
        *(["set `group_by` to `architecture`, so that only equal clients share"] * groupable),
    ]
    return (
        f"Client {client.name!r} differs from {other.name!r} in {_listed(differences, 'and')}, "
        f"and {title} needs equal ones: {_listed(remedies, 'or')}."
    )


def _suggested(different: Sequence[_Trait]) -> list[str]:
    """The strategies that share something and serve these differences, as a remedy."""
    titles = [
        info.title
        for info in describe_strategies()
        if all(trait.allowed_by(info.capabilities) for trait in different)
        and info.name is not StrategyName.LOCAL_ONLY
    ]
    if not titles:
        return []
    return [f"choose a strategy that allows it ({', '.join(titles[:MAX_SUGGESTIONS])})"]


def _listed(items: Sequence[str], word: str) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return f" {word} ".join(part for part in (", ".join(items[:-1]), items[-1]) if part)
