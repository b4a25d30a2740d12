"""Which faults a repetition meets, and when: everything follows from its seed."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Literal

from tests.faults.bad_line import CallTrouble, Trouble

PROGRAMS = ("api", "worker-control-1", "worker-train-1", "worker-train-2", "sweep", "agent")
CALLS = ("lease", "plan", "heartbeat", "shared", "result")
LATEST_EVENT = 24
"""An undisturbed run of two rounds and three clients writes 31 events; lost attempts add some."""


class Service(StrEnum):
    """What may fall down under the platform."""

    POSTGRES = "postgres"
    REDIS = "redis"


@dataclass(frozen=True)
class Kill:
    """SIGKILL, and a new start after a while."""

    program: str
    away_seconds: float


@dataclass(frozen=True)
class Crash:
    """PostgreSQL: immediate shutdown, then recovery. Redis: SIGKILL, then a start with no data."""

    service: Service


@dataclass(frozen=True)
class JobsAgain:
    """Every job that the run may have sent so far leaves once more or twice, in any order."""

    copies: int


@dataclass(frozen=True)
class Corruption:
    """A byte of an accepted update changes on disk before the round is aggregated."""

    byte: float  # where: a fraction of the file


Fault = Kill | Crash | JobsAgain | Corruption | CallTrouble


@dataclass(frozen=True)
class Planned:
    """A fault that comes when the run's journal has so many events, and a moment later."""

    after_events: int
    delay_seconds: float
    fault: Fault


@dataclass(frozen=True)
class Plan:
    """One repetition."""

    seed: int
    strategy: Literal["h2tune", "flora"]
    min_clients: int | None
    faults: tuple[Planned, ...]

    @property
    def corrupts(self) -> bool:
        return any(isinstance(planned.fault, Corruption) for planned in self.faults)


def draw_plan(seed: int) -> Plan:
    """The repetition of a seed: four to seven faults, spread over the run."""
    source = Random(seed)
    faults = [_planned(source, _draw_fault(source)) for _ in range(source.randint(4, 7))]
    if source.random() < 0.15:
        faults.append(_planned(source, Corruption(source.random())))
    return Plan(
        seed=seed,
        strategy=source.choice(("h2tune", "flora")),
        min_clients=source.choice((None, 2)),
        faults=tuple(sorted(faults, key=lambda planned: planned.after_events)),
    )


def _planned(source: Random, fault: Fault) -> Planned:
    # An update lies there to be damaged when the first of a training round is accepted.
    latest = 12 if isinstance(fault, Corruption) else LATEST_EVENT
    return Planned(source.randint(2, latest), source.choice((0.0, source.uniform(0, 0.3))), fault)


def _draw_fault(source: Random) -> Fault:
    kind = source.choices(("kill", "crash", "jobs", "call"), weights=(5, 2, 2, 3))[0]
    if kind == "kill":
        return Kill(source.choice(PROGRAMS), source.choice((0.0, source.uniform(0, 1.5))))
    if kind == "crash":
        return Crash(source.choice(tuple(Service)))
    if kind == "jobs":
        return JobsAgain(source.randint(1, 2))
    return CallTrouble(
        source.choice(tuple(Trouble)), source.choice(CALLS), source.uniform(0.05, 1.0)
    )
