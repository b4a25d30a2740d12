"""The promise of the round life, against random histories: jobs lost, late or twice, clients that
die, fail or come late, deadlines, pauses. Whatever happens, every run reaches an end, nothing stays
under way behind it, and every accepted update is used exactly once or listed as late.

The bridge, leases, sweep and database are the real ones; only the learning is left out.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select, update

from backend import jobs as backend_jobs
from backend import leases
from backend.contracts.base_models import Architecture
from backend.contracts.enums import RoundKind, RoundStatus, RunStatus, TaskKind, UpdateStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import Attempt, Client, ClientUpdate, Round, Run
from backend.db.session import SessionFactory
from backend.jobs import commit_and_enqueue
from backend.leases import Claim, Result
from backend.lifecycle import OPEN_ROUNDS, OPEN_UPDATES
from backend.resumption import pause_run, resume_run
from backend.settings import Settings
from backend.storage.object_store import open_blob_store
from backend.sweep import sweep_once
from tests.backend.rows import add_clients, add_run
from worker import artifacts, rounds
from worker.federated import types
from worker.federated.strategies.lora_exchange import accepted, make_plans
from worker.platform import Platform

NUM_CLIENTS, NUM_ROUNDS, MAX_ATTEMPTS = 3, 2, 2
QUORUM = {"min_clients": 2, "deadline_seconds": 3600.0}
POLICIES = [
    RoundPolicy(),
    RoundPolicy(min_clients=2),
    RoundPolicy(clients_per_round=2, min_fraction=0.5),
    RoundPolicy.model_validate({**QUORUM, "stragglers": "drop"}),
    RoundPolicy.model_validate({**QUORUM, "stragglers": "carry_over"}),
    RoundPolicy(buffer_size=2),
    RoundPolicy(buffer_size=1, clients_per_round=2),
]
Place = st.integers(0, 5)


class Bookkeeping:
    """A strategy that learns nothing: its state lists every update that was aggregated."""

    def check(self, federation: types.FederationSpec) -> list[types.Refusal]:
        return []

    def init_state(self, federation: types.FederationSpec, seed: int) -> types.ServerState:
        return types.ServerState({}, {"seed": seed, "used": []})

    def configure_round(
        self,
        state: types.ServerState,
        federation: types.FederationSpec,
        round_number: int,
        *,
        deliver: bool,
    ) -> dict[str, types.ClientPlan]:
        return make_plans(state, federation, round_number, deliver=deliver)

    def aggregate(
        self,
        state: types.ServerState,
        federation: types.FederationSpec,
        updates: Iterable[types.ClientUpdate],
    ) -> tuple[types.ServerState, types.AggregationReport]:
        came = [
            [update.client_id, update.round_number]
            for _, update in accepted(updates, federation, lambda client, update: {})
        ]
        meta = {**state.meta, "used": [*state.meta["used"], *came]}
        return types.ServerState({}, meta), types.AggregationReport(len(came))


def describe(
    clients: list[Client], global_rank: int, probes: tuple[str, ...]
) -> types.FederationSpec:
    shape = Architecture(family="llama", num_layers=1, hidden_size=8)
    specs = [
        types.ClientSpec(str(client.id), client.name, shape, {}, 4, 8.0, 8, TaskKind.FILL_IN)
        for client in clients
    ]
    ordered = tuple(sorted(specs, key=lambda s: s.client_id))
    return types.FederationSpec(global_rank, ordered, probes)


@pytest.fixture
def platform(
    session_factory: SessionFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    monkeypatch.setattr(rounds, "strategy_of", lambda run, kind: Bookkeeping())
    monkeypatch.setattr(rounds, "describe_federation", describe)
    patience = Settings(lease_seconds=1e-6, max_attempts=MAX_ATTEMPTS, worker_folder=tmp_path)
    yield Platform(session_factory, open_blob_store(blobs.as_uri()), patience)


class Histories(RuleBasedStateMachine):
    """Everything that may happen to one run, in any order."""

    def __init__(self, platform: Platform, queue: list[Job]) -> None:
        super().__init__()
        self.platform = platform
        self.queue = queue
        self.claims: list[Claim] = []
        self.run_id = UUID(int=0)

    @initialize(policy=st.sampled_from(POLICIES))
    def start(self, policy: RoundPolicy) -> None:
        self.queue.clear()
        with self.platform.session_factory() as session:
            clients = add_clients(session, NUM_CLIENTS)
            run = add_run(session, clients, RunStatus.QUEUED, NUM_ROUNDS)
            run.round_policy = policy.model_dump(mode="json")
            session.commit()
            self.run_id = run.id
        self.queue.append(OpenRound(run_id=self.run_id))

    @rule(place=Place, twice=st.booleans())
    def do_a_job(self, place: int, twice: bool) -> None:
        if self.queue:
            job = self.queue.pop(place % len(self.queue))
            for _ in range(1 + twice):
                self._do(job)

    @rule(place=Place)
    def lose_a_job(self, place: int) -> None:
        if self.queue:
            self.queue.pop(place % len(self.queue))

    @rule(place=Place, keep=st.booleans())
    def finish(self, place: int, keep: bool) -> None:
        """A client hands in; `keep`: and once more later."""
        if self.claims:
            claim = self.claims[place % len(self.claims)]
            if not keep:
                self.claims.remove(claim)
            self._finish(claim)

    @rule(place=Place)
    def fail(self, place: int) -> None:
        if self.claims:
            claim = self.claims.pop(place % len(self.claims))
            with self.platform.session_factory() as session:
                commit_and_enqueue(session, *leases.fail(session, claim, "no memory"))

    @rule(place=Place)
    def give_back(self, place: int) -> None:
        if self.claims:
            claim = self.claims[place % len(self.claims)]
            with self.platform.session_factory() as session:
                commit_and_enqueue(session, *leases.release(session, claim))

    @rule()
    def all_workers_fall_silent(self) -> None:
        past = func.now() - timedelta(seconds=1)
        self._set(
            update(ClientUpdate)
            .where(ClientUpdate.status == UpdateStatus.TRAINING)
            .values(lease_expires_at=past)
        )
        sweep_once(self.platform.session_factory, self.platform.settings)

    @rule()
    def the_deadline_passes(self) -> None:
        past = func.now() - timedelta(seconds=1)
        self._set(update(Round).where(Round.deadline_at.is_not(None)).values(deadline_at=past))
        sweep_once(self.platform.session_factory, self.platform.settings)

    @rule()
    def pause(self) -> None:
        with self.platform.session_factory() as session:
            pause_run(session, self.run_id, "ada")
            session.commit()

    @rule()
    def resume(self) -> None:
        with self.platform.session_factory() as session:
            commit_and_enqueue(session, *(resume_run(session, self.run_id, "ada") or []))

    @invariant()
    def is_in_order(self) -> None:
        with self.platform.session_factory() as session:
            run = session.get(Run, self.run_id)
            if run is None:
                return
            open_rounds = session.scalars(
                select(Round.id).where(Round.run_id == run.id, Round.status.in_(OPEN_ROUNDS))
            ).all()
            assert len(open_rounds) <= 1
            open_updates = session.execute(
                select(ClientUpdate.client_id)
                .join(Round, ClientUpdate.round_id == Round.id)
                .where(Round.run_id == run.id, ClientUpdate.status.in_(OPEN_UPDATES))
            ).all()
            assert max(Counter(open_updates).values(), default=0) <= 1, "a client at two rounds"
            if run.status.is_terminal:
                assert not open_rounds
                assert not open_updates

    def teardown(self) -> None:
        """From here on nobody dies: the run must reach an end by itself, and the books balance."""
        if self.run_id == UUID(int=0):
            return
        with self.platform.session_factory() as session:
            if session.get_one(Run, self.run_id).status is RunStatus.PAUSED:
                commit_and_enqueue(session, *(resume_run(session, self.run_id, "ada") or []))
        for _ in range(40):
            while self.queue:
                self._do(self.queue.pop(0))
            while self.claims:
                self._finish(self.claims.pop(0))
            if self._run().status.is_terminal and not self.queue:
                break
            if not self.queue:
                self.all_workers_fall_silent()
        run = self._run()
        assert run.status in {RunStatus.COMPLETED, RunStatus.FAILED}, run.status
        self.is_in_order()
        self._books_balance(run)

    def _books_balance(self, run: Run) -> None:
        with self.platform.session_factory() as session:
            taken = session.execute(
                select(
                    ClientUpdate.client_id,
                    Round.round_number,
                    ClientUpdate.aggregated_in,
                    ClientUpdate.late_at,
                )
                .join(Round, ClientUpdate.round_id == Round.id)
                .where(
                    Round.run_id == run.id,
                    Round.kind == RoundKind.TRAIN,
                    ClientUpdate.status == UpdateStatus.ACCEPTED,
                )
            ).all()
            endless = session.scalars(select(Attempt.number).where(Attempt.outcome.is_(None))).all()
            closed = session.scalars(
                select(Round.round_number).where(
                    Round.run_id == run.id, Round.status == RoundStatus.CLOSED
                )
            ).all()
        assert not endless
        if run.state_sha256 is None:
            return
        state = artifacts.load_state(self.platform, run.state_sha256)
        used = Counter((client_id, number) for client_id, number in state.meta["used"])
        said = Counter(
            (str(client_id), number) for client_id, number, used_in, _ in taken if used_in in closed
        )
        assert used == said
        assert max(used.values(), default=0) <= 1
        if run.status is RunStatus.COMPLETED:
            assert all((used_in is None) != (late is None) for _, _, used_in, late in taken)

    def _run(self) -> Run:
        with self.platform.session_factory() as session:
            return session.get_one(Run, self.run_id)

    def _set(self, statement: object) -> None:
        with self.platform.session_factory() as session:
            session.execute(statement)  # type: ignore[call-overload]
            session.commit()

    def _do(self, job: Job) -> None:
        match job:
            case OpenRound():
                rounds.open_round(self.platform, job.run_id)
            case CloseRound():
                rounds.close_round(self.platform, job.round_id)
            case RunClientUpdate():
                with self.platform.session_factory() as session:
                    claim = leases.claim(session, job.client_update_id, "worker", 3600)
                    session.commit()
                if claim is not None:
                    self.claims.append(claim)

    def _finish(self, claim: Claim) -> None:
        empty = types.ClientUpdate(str(claim.client_id), claim.round_number, 8, {}, {}, {})
        blob = artifacts.save_update(self.platform, empty)
        with self.platform.session_factory() as session:
            jobs = leases.accept(session, claim, Result(metrics={}, shared_sha256=blob))
            commit_and_enqueue(session, *(jobs or []))


def test_every_history_ends_and_the_books_balance(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: list[Job] = []
    monkeypatch.setattr(backend_jobs, "enqueue", queue.append)
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Histories(platform, queue),
        settings=settings(
            max_examples=8,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
