"""Whether the members of a federation and a run's rounds allow secure aggregation."""

from collections.abc import Sequence

from backend.contracts.clients import Client
from backend.contracts.compatibility import Incompatibility, Participant, participant_of
from backend.contracts.enums import Execution
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.privacy import (
    SMALLEST_SUM,
    PrivacySettings,
    platform_refusals,
    threshold_of,
)
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.strategies import Params

SECURE_FIELD = "privacy.secure_aggregation"


def protection_refusals(
    params: Params, privacy: PrivacySettings, policy: RoundPolicy, clients: Sequence[Client]
) -> dict[str, list[str]]:
    """Why a run of these members cannot be protected as asked, by field of the run; empty: it can.

    Arguments as those of `secure_refusals`.
    """
    by_settings = platform_refusals(params, privacy)
    found = {f"privacy.{field}": list(reasons) for field, reasons in by_settings.items()}
    for field, reasons in secure_refusals(params, privacy, policy, clients).items():
        found.setdefault(field, []).extend(reasons)
    return found


def secure_refusals(
    params: Params, privacy: PrivacySettings, policy: RoundPolicy, clients: Sequence[Client]
) -> dict[str, list[str]]:
    """Why such a run cannot add up securely, by field of the run; empty: it can, or need not.

    Args:
        params: the strategy; `privacy.platform_refusals` says whether it is linear.
        privacy: of the run.
        policy: how its rounds close.
        clients: all members.
    """
    settings = privacy.secure_aggregation
    if settings is None:
        return {}
    members = sorted((participant_of(client) for client in clients), key=lambda p: p.client_id)
    num_participants = policy.num_participants(len(clients))
    needed = threshold_of(settings, num_participants)
    reasons = [found.reason for found in entries_refusals(params, members)]
    if num_participants < needed:
        reasons.append(
            f"Secure aggregation needs {needed} clients in a round, and {num_participants} of "
            f"{len(clients)} take part: add clients, let more of them take part, or lower the "
            f"threshold (at least {SMALLEST_SUM})."
        )
    managed = sorted(client.name for client in clients if client.execution is Execution.MANAGED)
    if managed:
        reasons.append(
            f"The platform trains for {', '.join(managed)} and so sees what it would hide: leave "
            "managed clients out of this federation, or register them as remote ones with "
            "`python -m worker.agent register`."
        )
    found = {SECURE_FIELD: reasons, **_policy_refusals(policy)}
    return {field: texts for field, texts in found.items() if texts}


def entries_refusals(params: Params, members: Sequence[Participant]) -> list[Incompatibility]:
    """Clients that hold other entries of the shared tensors than the first one.

    The sum of an entry that one client alone holds would be that client's value.
    """
    if not members:
        return []
    first = members[0]
    return [
        Incompatibility(
            member.client_id,
            member.name,
            f"Client {member.name!r} holds other entries than {first.name!r} "
            f"({_described(member)}; {_described(first)}), so a sum would show what one client "
            "sent: give all clients one rank, or set `sparsity`, and the same module roles; "
            "heterotune needs equal depths as well.",
        )
        for member in members
        if _held(params, member) != _held(params, first)
    ]


def _policy_refusals(policy: RoundPolicy) -> dict[str, list[str]]:
    why = (
        "With secure aggregation the updates of a round are masked for one another, so none of "
        "them can count in a later round"
    )
    found = {}
    if policy.buffer_size is not None:
        found["round_policy.buffer_size"] = [
            f"{why}: leave buffer_size out, and give min_clients and a deadline instead."
        ]
    if policy.stragglers == "carry_over":
        found["round_policy.stragglers"] = [f"{why}: choose 'drop' or 'wait' for stragglers."]
    return found


def _held(params: Params, member: Participant) -> tuple[object, ...]:
    """What decides which entries of the shared tensors a client holds."""
    match params:
        case H2TuneParams():  # block layout with untrained masks
            size = member.lora_rank if params.sparsity is None else None
            return (size, *sorted(member.modules or ()))
        case HeteroTuneParams():
            return (member.lora_rank, member.architecture.num_layers)
        case _:  # needs clients of equal shape anyway
            return ()


def _described(member: Participant) -> str:
    modules = sorted(member.modules or ())
    return ", ".join(
        [f"rank {member.lora_rank}", f"{member.architecture.num_layers} layers", *modules]
    )
