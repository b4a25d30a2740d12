"""Which round comes next in a run, who takes part in it, and how many of them are enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from backend.barrier import refusal_sentence
from backend.contracts.enums import RoundKind
from backend.contracts.h2tune_defaults import exchanges_codes
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.strategies import PARAMS
from backend.db.models import Client, Refusal, Run
from worker.federated.errors import FederatedError
from worker.federated.participation import draw_clients


@dataclass(frozen=True, slots=True)
class Opening:
    """The round that is about to open."""

    number: int
    kind: RoundKind
    clients: list[Client]  # who takes part
    num_members: int
    quorum: int
    deadline: timedelta | None

    def sentence(self) -> str:
        """For the run page."""
        match self.kind:
            case RoundKind.GAUGE:
                what = "Agreement on common codes"
            case RoundKind.TRAIN:
                what = f"Round {self.number}"
            case RoundKind.DELIVER:
                what = "Delivery"
        some = len(self.clients)
        among = "" if some == self.num_members else f" of {self.num_members}"
        return f"{what} opened for {some}{among} clients."


def plan_opening(
    run: Run, clients: list[Client], busy: set[UUID], refusals: Sequence[Refusal] = ()
) -> Opening:
    """Who takes part in the next round: not whoever is still busy with an earlier one.

    Raises:
        FederatedError: somebody refuses, and the run needs everybody or has nobody left.
    """
    number = run.round_number + 1
    policy = RoundPolicy.model_validate(run.round_policy)
    members = _willing(policy, clients, refusals)
    seconds = policy.deadline_seconds
    deadline = None if seconds is None else timedelta(seconds=seconds)
    if _comes_before_training(run, clients):
        quorum = policy.quorum(len(members))
        return Opening(0, RoundKind.GAUGE, members, len(members), quorum, deadline)
    busy = busy.intersection(client.id for client in members)
    if number > (run.stopped_after or run.num_rounds):
        quorum = policy.quorum(len(members))
        return Opening(number, RoundKind.DELIVER, members, len(members), quorum, None)
    num_at_work = policy.num_participants(len(members))
    free = {str(client.id): client for client in members if client.id not in busy}
    drawn = draw_clients(free, max(0, num_at_work - len(busy)), run.seed, number)
    return Opening(
        number=number,
        kind=RoundKind.TRAIN,
        clients=[free[client_id] for client_id in drawn],
        num_members=len(members),
        quorum=policy.quorum(num_at_work),
        deadline=deadline,
    )


def _comes_before_training(run: Run, clients: Sequence[Client]) -> bool:
    """Whether the models still have to agree on codes: the run has no state yet."""
    params = PARAMS.validate_python(run.strategy)
    return run.state_sha256 is None and exchanges_codes(params, [c.task for c in clients])


def _willing(
    policy: RoundPolicy, clients: list[Client], refusals: Sequence[Refusal]
) -> list[Client]:
    refusing = {refusal.client_id for refusal in refusals}
    willing = [client for client in clients if client.id not in refusing]
    num_needed = policy.num_participants(len(clients)) if policy.needs_everybody else 1
    if refusing and len(willing) < num_needed:
        sentences = [refusal_sentence(r.client.name, r.reason) for r in refusals]
        raise FederatedError(
            f"{' '.join(sentences)} {num_needed} of {len(clients)} clients are needed: withdraw "
            "the refusal and resume the run, or start one whose round policy needs fewer "
            "(min_clients, min_fraction)."
        )
    return willing
