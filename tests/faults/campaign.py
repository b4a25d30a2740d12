"""Repetitions of one federation, each with the faults of its seed, judged by an undisturbed run."""

import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from backend.api_client import ApiClientError
from backend.contracts.enums import RunStatus, UpdateStatus
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FloraParams
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.runs import RunCreate
from backend.contracts.training import TrainingConfig
from backend.db.models import ClientUpdate, Event, Round, Run
from backend.lifecycle import cancel_run
from tests.faults.injection import Injector
from tests.faults.outcome import Outcome, problems_of, problems_of_corrupted, read_outcome
from tests.faults.plan import Plan, Planned, draw_plan
from tests.faults.site import Site

NUM_ROUNDS = 2
END_SECONDS = 180.0
LOOK_SECONDS = 0.03
TRAINING = TrainingConfig(local_steps=2, batch_size=4, max_eval_examples=2)
STRATEGIES = {"h2tune": H2TuneParams(), "flora": FloraParams()}


@dataclass(frozen=True)
class Repetition:
    """How one seed ended."""

    seed: int
    num_injected: int
    problems: list[str]
    seconds: float


@dataclass
class _Look:
    """The run as it is now, and every update that was seen as accepted."""

    status: RunStatus
    num_events: int


class Campaign:
    """Runs repetitions on one site."""

    def __init__(self, site: Site, say: Callable[[str], object]) -> None:
        self._site = site
        self._say = say
        self._references: dict[str, Outcome] = {}

    def run(self, seeds: Iterable[int], num_faults: int) -> list[Repetition]:
        """As many of the seeds as it takes to inject so many faults."""
        done: list[Repetition] = []
        for seed in seeds:
            repetition = self._repeat(draw_plan(seed))
            done.append(repetition)
            verdict = "survived" if not repetition.problems else "FAILED"
            self._say(
                f"seed {seed}: {repetition.num_injected} faults, {verdict} "
                f"({repetition.seconds:.0f} s)"
            )
            for problem in repetition.problems:
                self._say(f"  {problem}")
            if sum(each.num_injected for each in done) >= num_faults:
                break
        return done

    def _repeat(self, plan: Plan) -> Repetition:
        reference = self._reference(plan.strategy)
        start = time.monotonic()
        run_id = self._start(plan)
        injector = Injector(self._site, run_id, Random(plan.seed))
        try:
            lost = self._disturb(run_id, list(plan.faults), injector)
            self._site.wait_until_whole()
            with self._site.session_factory() as session:
                outcome = read_outcome(session, self._site.store, run_id)
            damage = injector.damage
            if damage is not None and damage.is_there:
                problems = problems_of_corrupted(outcome, damage.part, plan.min_clients)
            else:  # none, or an attempt that was thought dead has stored the same bytes again
                problems = problems_of(outcome, reference)
            problems += lost
        except (AssertionError, ApiClientError, OperationalError) as error:
            problems = [f"{type(error).__name__}: {error}", traceback.format_exc()]
            self._give_up(run_id)
        if injector.damage is not None:
            injector.damage.repair()
        num_injected = injector.num_injected + injector.num_calls_troubled
        return Repetition(plan.seed, num_injected, problems, time.monotonic() - start)

    def _reference(self, strategy: str) -> Outcome:
        """The same run with nothing in its way, made when it is needed first."""
        if strategy not in self._references:
            run_id = self._start(Plan(0, strategy, None, ()))  # type: ignore[arg-type]
            self._disturb(run_id, [], Injector(self._site, run_id, Random(0)))
            with self._site.session_factory() as session:
                outcome = read_outcome(session, self._site.store, run_id)
            assert outcome.status is RunStatus.COMPLETED, f"{outcome.error}\n{self._site.log()}"
            self._references[strategy] = outcome
        return self._references[strategy]

    def _start(self, plan: Plan) -> UUID:
        self._site.wait_until_whole()
        run = self._site.api.federations.create_run(
            self._site.federation_id,
            RunCreate(
                strategy=STRATEGIES[plan.strategy],
                num_rounds=NUM_ROUNDS,
                seed=1,
                training=TRAINING,
                round_policy=RoundPolicy(min_clients=plan.min_clients),
            ),
        )
        self._site.api.runs.start(run.id)
        return run.id

    def _disturb(self, run_id: UUID, faults: list[Planned], injector: Injector) -> list[str]:
        """Injects until the run has ended; gives the accepted updates that got lost meanwhile."""
        accepted: set[UUID] = set()
        lost: list[str] = []
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            self._site.tend()
            time.sleep(LOOK_SECONDS)
            with suppress(OperationalError):  # PostgreSQL is away
                look = self._look(run_id, accepted, lost)
                if look.status.is_terminal:
                    return lost
                due = [fault for fault in faults if fault.after_events <= look.num_events]
                for planned in due:
                    time.sleep(planned.delay_seconds)
                    if injector.inject(planned.fault):
                        faults.remove(planned)
        raise AssertionError(f"run {run_id} has not ended in {END_SECONDS:.0f} s")

    def _look(self, run_id: UUID, accepted: set[UUID], lost: list[str]) -> _Look:
        with self._site.session_factory() as session:
            status = session.scalars(select(Run.status).where(Run.id == run_id)).one()
            num_events = session.scalar(
                select(func.count()).select_from(Event).where(Event.run_id == run_id)
            )
            now = set(
                session.scalars(
                    select(ClientUpdate.id)
                    .join(Round, ClientUpdate.round_id == Round.id)
                    .where(
                        Round.run_id == run_id,
                        ClientUpdate.status.in_([UpdateStatus.ACCEPTED, UpdateStatus.REFUSED]),
                    )
                )
            )
        lost += [
            f"update {update_id} was accepted and is not any more" for update_id in accepted - now
        ]
        accepted |= now
        return _Look(status, num_events or 0)

    def _give_up(self, run_id: UUID) -> None:
        """Ends a run that hangs, so that the next repetition has the platform for itself."""
        self._site.line.calm()
        with self._site.session_factory() as session:
            cancel_run(session, run_id, "the fault injection")
            session.commit()
