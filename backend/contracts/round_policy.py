"""How a run's rounds open and close: who takes part, how many are enough, what of the late ones."""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from backend.contracts.enums import StrategyName
from backend.contracts.strategies import Params, title_of

Stragglers = Literal["wait", "drop", "carry_over"]
"""What becomes of clients that are at work when a round's deadline passes.

- wait: the round waits; the run page says for whom.
- drop: the round closes without them, and their late results are refused.
- carry_over: they go on, and count in a later round as stale.
"""


class RoundPolicy(BaseModel):
    """Who takes part in a round, and when it closes; empty: everybody, and it waits for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_clients: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        title="Fewest clients",
        description="So many updates must come for a round to count. Fewer clients may then fail "
        "or be late without ending the run. Empty: all clients of the round.",
    )
    min_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Smallest share of clients",
        description="The same as a share of the clients that take part in the round, rounded up; "
        "where both are given, the larger number counts.",
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=90 * 86_400,
        title="Deadline (seconds)",
        description="From the opening of a training round, by the clock of the database; looked at "
        "every few seconds. Empty: no deadline. Deliveries have none.",
    )
    stragglers: Stragglers = Field(
        "wait",
        title="Late clients",
        description="At the deadline. wait: the round goes on, and the page says who is late. "
        "drop: it closes once enough updates are in, and later ones are refused. carry_over: it "
        "closes too, and the late ones go on and count in a later round, as stale.",
    )
    clients_per_round: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        title="Clients per round",
        description="So many, drawn anew for each round from the seed of the run. Empty: all. "
        "Everybody takes part in the delivery.",
    )
    client_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        title="Share of clients per round",
        description="The same as a share of all members, rounded up. Give one of the two.",
    )

    buffer_size: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        title="Buffer",
        description="Semi-synchronous rounds: a round closes as soon as so many updates are in, "
        "whatever round they began in. Whoever is still at work goes on, and counts in a later "
        "round, as stale. Empty: rounds wait for their clients.",
    )
    staleness_exponent: float = Field(
        0.5,
        ge=0,
        le=10,
        title="Staleness exponent",
        description="An update that is tau rounds old weighs (1 + tau)^-a times its number of "
        "examples, with a the exponent: 0 treats all alike, 0.5 halves the weight after three "
        "rounds. HetLoRA and Co-LoRA do not weigh by examples, so there it has no effect.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.clients_per_round is not None and self.client_fraction is not None:
            raise ValueError(
                "clients_per_round and client_fraction both say how many take part: give one"
            )
        if self.buffer_size is not None and self.deadline_seconds is not None:
            raise ValueError(
                "with buffer_size the buffer closes rounds, not a clock: leave deadline_seconds out"
            )
        if self.stragglers == "wait":
            return self
        if self.deadline_seconds is None:
            raise ValueError(
                f"stragglers '{self.stragglers}' has no effect without deadline_seconds: "
                "give a deadline, or set stragglers to 'wait'"
            )
        if self.needs_everybody:
            raise ValueError(
                f"stragglers '{self.stragglers}' needs to know how many clients are enough: "
                "give min_clients or min_fraction"
            )
        return self

    @property
    def needs_everybody(self) -> bool:
        """True where every client of a round must send."""
        return (self.min_clients, self.min_fraction, self.buffer_size) == (None, None, None)

    @property
    def carries_over(self) -> bool:
        """True where updates of earlier rounds may count in later ones."""
        return self.stragglers == "carry_over" or self.buffer_size is not None

    def num_participants(self, num_members: int) -> int:
        """How many clients are at work in a training round of so many members."""
        if self.clients_per_round is not None:
            return min(num_members, self.clients_per_round)
        if self.client_fraction is not None:
            return _share_of(self.client_fraction, num_members)
        return num_members

    def quorum(self, num_participants: int) -> int:
        """How many updates a round with so many clients needs, at least 1."""
        if self.needs_everybody:
            return max(1, num_participants)
        share = 0 if self.min_fraction is None else _share_of(self.min_fraction, num_participants)
        asked = max(self.min_clients or 0, share)
        return max(1, asked or min(self.buffer_size or 0, num_participants))


EVERYBODY = RoundPolicy()

ADDS_TO_BASE = frozenset({StrategyName.FLORA, StrategyName.FLORIST, StrategyName.FEDEX_LORA})
"""Clients of these keep what the last rounds added to the base model: none may skip the order."""


def policy_refusals(params: Params, policy: RoundPolicy, num_members: int) -> dict[str, str]:
    """Why a run of so many members cannot go by this policy, by field; empty: it can."""
    found = {}
    num_participants = policy.num_participants(num_members)
    if policy.min_clients is not None and policy.min_clients > num_participants:
        found["min_clients"] = (
            f"{policy.min_clients} updates are asked for, but only {num_participants} of "
            f"{num_members} clients take part in a round: lower min_clients."
        )
    if policy.buffer_size is not None and policy.buffer_size > num_participants:
        found["buffer_size"] = (
            f"The buffer of {policy.buffer_size} never fills: only {num_participants} of "
            f"{num_members} clients are at work at a time. Lower buffer_size."
        )
    if policy.carries_over and params.name in ADDS_TO_BASE:
        field = "stragglers" if policy.buffer_size is None else "buffer_size"
        found[field] = (
            f"{title_of(params)} adds every round to the base model, where what was learned from "
            "an earlier one no longer fits: choose 'drop' or 'wait' for stragglers."
        )
    return found


def _share_of(fraction: float, total: int) -> int:
    """Rounded up, at least 1; a hair of rounding error does not cost a client."""
    return max(1, min(total, math.ceil(fraction * total - 1e-9)))
