"""Rounds with secure aggregation: real agents in threads, the real application and database."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from pydantic import SecretStr
from scipy import stats
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from backend import jobs
from backend.api_client import ApiClient, ApiError
from backend.contracts.agent import AgentResult, SecureTask
from backend.contracts.clients import ClientRegister
from backend.contracts.enums import (
    Execution,
    RoundStatus,
    RunStatus,
    SecureStep,
    TaskKind,
    UpdateStatus,
)
from backend.contracts.jobs import CloseRound, Job, OpenRound
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation
from backend.contracts.round_policy import EVERYBODY, RoundPolicy
from backend.contracts.secure_aggregation import (
    SESSION_OVER,
    SecureKeys,
    SecureReveal,
    SecureShares,
)
from backend.contracts.strategies import Params
from backend.contracts.training import TrainingConfig
from backend.db.models import (
    Client,
    ClientUpdate,
    Metric,
    Round,
    Run,
    SecureParty,
    SecureSession,
)
from backend.db.session import SessionFactory
from backend.resumption import resume_run
from backend.settings import Settings
from backend.storage import BlobStore
from backend.sweep import sweep_once
from tests.backend.rows import add_run
from tests.factories import Caller, make_key
from tests.worker.agent.in_process import InProcess
from worker import artifacts, rounds
from worker.agent import patience, secure_party
from worker.agent.agent import Agent
from worker.agent.errors import MaskingError
from worker.agent.party_file import PartyFile
from worker.agent.premises import Premises, open_premises
from worker.agent.secure_party import begin
from worker.agent.store import Done, StateFolder
from worker.agent.unmasking import Unmasking
from worker.federated.base_models import load_base_model
from worker.federated.errors import NonFiniteError
from worker.federated.privacy.masked_update import SINGLE_UPDATE_METRICS
from worker.federated.simulation import SimulatedClient, SimulationResult, simulate
from worker.federated.types import Tensors
from worker.federated.wire import decode_update
from worker.platform import Platform

MODEL = "builtin:tiny_llama"
CONFIG = TrainingConfig(local_steps=2, max_eval_examples=1)
SECURE = PrivacySettings(secure_aggregation=SecureAggregation(value_range=4.0))
STEP = 4.0 / 2**30
PAST = func.now() - timedelta(seconds=1)
PARAMS = FedItParams()
H2TUNE = H2TuneParams(gauge="none", train_alignment=False, mask_warmup_rounds=0)
"""Sends masks and coverage beside its values: these follow from shapes, and travel as they are."""


@cache
def premises_of(number: int) -> Premises:
    rows = f"builtin:arithmetic_fill_in,seed={number},num_train={4 + 2 * number}"
    return open_premises(MODEL, f"{rows},num_validation=2,num_test=2", TaskKind.FILL_IN)


@dataclass(frozen=True)
class Party:
    """A remote client whose agent a test moves by hand; only its folder outlives a `work`."""

    api: ApiClient
    premises: Premises
    folder: Path

    @property
    def agent(self) -> Agent:
        client = self.api.clients.me()
        store = StateFolder(self.folder, client.id)
        spec = self.premises.spec(client)
        return Agent(self.api, "here", spec, self.premises, store, threading.Event())

    @property
    def client_id(self) -> UUID:
        return self.api.clients.me().id

    def work(self) -> None:
        """Does the next update, with everything that it waits for."""
        leased = self.api.agent.lease("here")
        assert leased is not None
        self.agent.do(leased)

    def unmask(self) -> None:
        agent = self.agent
        Unmasking(self.api, UUID(agent.spec.client_id), agent.store, agent.stop).answer()


@dataclass(frozen=True)
class Site:
    """A platform and its remote clients, in order of client id."""

    platform: Platform
    sent: list[Job]
    parties: Sequence[Party]

    def start_run(
        self,
        *,
        num_rounds: int = 1,
        params: Params = PARAMS,
        policy: RoundPolicy = EVERYBODY,
        value_range: float = 4.0,
    ) -> UUID:
        settings = SecureAggregation(value_range=value_range)
        with self.platform.session_factory() as session:
            clients = [session.get_one(Client, party.client_id) for party in self.parties]
            run = add_run(session, clients, RunStatus.QUEUED, num_rounds=num_rounds)
            run.strategy = params.model_dump(mode="json")
            run.privacy = PrivacySettings(secure_aggregation=settings).model_dump(mode="json")
            run.training = CONFIG.model_dump(mode="json")
            run.round_policy = policy.model_dump(mode="json")
            session.commit()
        rounds.open_round(self.platform, run.id)
        return run.id

    def work(self, *parties: Party) -> None:
        """These clients do their part at the same time, because each waits for the others."""
        with ThreadPoolExecutor(len(parties)) as pool:
            for done in [pool.submit(party.work) for party in parties]:
                done.result(120)

    def do_jobs(self) -> None:
        while self.sent:
            match self.sent.pop(0):
                case OpenRound(run_id=run_id):
                    rounds.open_round(self.platform, run_id)
                case CloseRound(round_id=round_id):
                    rounds.close_round(self.platform, round_id)

    def run(self, run_id: UUID) -> Run:
        with self.platform.session_factory() as session:
            return session.scalars(select(Run).where(Run.id == run_id)).one()

    def updates(self, run_id: UUID) -> list[ClientUpdate]:
        """Of the newest round, in order of client id."""
        with self.platform.session_factory() as session:
            rows = session.scalars(
                select(ClientUpdate)
                .join(Round, ClientUpdate.round_id == Round.id)
                .join(Run, Round.run_id == Run.id)
                .where(Run.id == run_id, Round.round_number == Run.round_number)
            ).all()
        return sorted(rows, key=lambda row: str(row.client_id))

    def secure(self, run_id: UUID) -> SecureSession:
        """Of the newest round."""
        with self.platform.session_factory() as session:
            return session.scalars(
                select(SecureSession)
                .join(Round, SecureSession.round_id == Round.id)
                .where(Round.run_id == run_id)
                .order_by(Round.round_number.desc())
                .limit(1)
            ).one()

    def end_leases(self) -> None:
        """Whoever is at work has given no sign of life, and the sweep sees it."""
        with self.platform.session_factory() as session:
            session.execute(update(ClientUpdate).values(lease_expires_at=PAST))
            session.commit()
        sweep_once(self.platform.session_factory, self.platform.settings)

    def pass_deadline(self) -> None:
        """The deadline of the present step is over, and the sweep sees it."""
        with self.platform.session_factory() as session:
            session.execute(update(Round).values(deadline_at=PAST))
            session.commit()
        sweep_once(self.platform.session_factory, self.platform.settings)

    def resume(self, run_id: UUID) -> None:
        with self.platform.session_factory() as session:
            found = resume_run(session, run_id, "tests")
            assert found is not None
            session.commit()
        self.sent.extend(found)

    def state(self, run_id: UUID) -> Tensors:
        sha256 = self.run(run_id).state_sha256
        assert sha256 is not None
        return artifacts.load_state(self.platform, sha256).tensors


@pytest.fixture
def site(
    http: TestClient,
    operator: Caller,
    session_factory: SessionFactory,
    blob_store: BlobStore,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    sent: list[Job] = []
    monkeypatch.setattr(jobs, "enqueue", sent.append)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(secure_party, "POLL_SECONDS", 0.02)
    compute, one_at_a_time = Agent._compute, threading.Lock()

    def alone(self: Agent, *arguments: Any) -> Done:
        """Models are loaded and trained in one thread of a process only."""
        with one_at_a_time:
            return compute(self, *arguments)

    monkeypatch.setattr(Agent, "_compute", alone)
    secret = make_key(operator, max_uses=4)["secret"]
    parties = [
        register(ApiClient("http://platform.test", transport=InProcess(http)), secret, n, tmp_path)
        for n in range(4)
    ]
    parties.sort(key=lambda party: str(party.client_id))
    return Site(Platform(session_factory, blob_store, settings), sent, parties)


def register(api: ApiClient, secret: str, number: int, folder: Path) -> Party:
    premises = premises_of(number)
    registered = api.clients.register(
        ClientRegister(
            enrolment_key=SecretStr(secret),
            name=f"owner-{number}",
            execution=Execution.REMOTE,
            base_model=premises.public_model(),
            architecture=premises.architecture,
            modules=premises.declared_modules(),
            num_examples=len(premises.data.train),
            lora_rank=2,
            task=TaskKind.FILL_IN,
        )
    )
    api.use_token(registered.credential)
    return Party(api, premises, folder / f"owner-{number}")


def simulated(
    site: Site,
    num_rounds: int = 1,
    *,
    params: Params = PARAMS,
    missing: Sequence[UUID] = (),
) -> SimulationResult:
    """The same run in one process, with all of the protocol."""
    clients = []
    for party in site.parties:
        model, tokenizer = load_base_model(
            party.premises.model, device=torch.device("cpu"), dtype=torch.float32
        )
        clients.append(
            SimulatedClient(str(party.client_id), model, tokenizer, party.premises.data, 2, 4.0)
        )
    return simulate(
        params,
        clients,
        num_rounds=num_rounds,
        training=CONFIG,
        global_rank=4,
        seed=0,
        privacy=SECURE,
        dropouts=lambda _number: [str(client_id) for client_id in missing],
    )


def largest_difference(one: Tensors, other: Tensors) -> float:
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def test_the_platform_opens_exactly_what_a_simulation_opens_and_sees_no_update(site: Site) -> None:
    run_id = site.start_run(num_rounds=2)
    masked = []
    for _ in range(2):
        site.work(*site.parties)
        assert site.secure(run_id).step is SecureStep.UNMASKING
        assert not site.sent, "nothing is aggregated before the shares are told"
        masked.append([row.shared_sha256 for row in site.updates(run_id)])
        for party in site.parties:
            party.unmask()
        site.do_jobs()
    for party in site.parties:
        party.work()
    site.do_jobs()
    assert (site.run(run_id).status, site.run(run_id).error) == (RunStatus.COMPLETED, None)
    result = simulated(site, num_rounds=2)
    assert largest_difference(site.state(run_id), result.state.tensors) == 0
    with site.platform.session_factory() as session:
        reports = session.scalars(
            select(Round.report).where(Round.run_id == run_id).order_by(Round.round_number)
        ).all()
        names = set(session.scalars(select(Metric.name).where(Metric.run_id == run_id)))
    assert reports[0]["rounding_error_bound"] == pytest.approx(4 * STEP / 2)
    assert "update_cosine" not in reports[0]
    assert MetricName.ACCURACY_AFTER_TRAINING in names
    assert not names & SINGLE_UPDATE_METRICS
    for party, sha256 in zip(site.parties, masked[1], strict=True):
        assert_tells_nothing(site, run_id, party, sha256)


def assert_tells_nothing(site: Site, run_id: UUID, party: Party, sha256: str | None) -> None:
    """The stored bytes are uniform noise beside the update that its owner kept."""
    assert sha256 is not None
    stored = site.platform.store.read(sha256)
    store = StateFolder(party.folder, party.client_id)
    kept = (store.adapter_folder(run_id).parent / "round-00002" / "shared.safetensors").read_bytes()
    plain, masked = decode_update(kept), decode_update(stored)
    assert plain.shared.keys() == masked.shared.keys()
    assert not SINGLE_UPDATE_METRICS & masked.metrics.keys()
    numbers = {name: tensor.numpy().view(np.uint32) for name, tensor in masked.shared.items()}
    row = np.concatenate([tensor.ravel() for tensor in numbers.values()]) / 2**32
    assert stats.kstest(row, "uniform").pvalue > 1e-6
    own = np.concatenate([plain.shared[name].numpy().ravel() for name in numbers])
    assert abs(np.corrcoef(own, row)[0, 1]) < 6 / len(row) ** 0.5
    assert not any(t.numpy().tobytes() in stored for t in plain.shared.values() if t.any())


def test_who_is_lost_after_the_exchange_is_left_out_of_the_sum(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = site.start_run(params=H2TUNE, policy=RoundPolicy(min_clients=3))
    lost = site.parties[1].client_id
    compute = Agent._compute

    def diverge(self: Agent, *arguments: Any) -> Done:
        if self.spec.client_id == str(lost):
            raise NonFiniteError("The loss is NaN: lower the learning rate.")
        return compute(self, *arguments)

    monkeypatch.setattr(Agent, "_compute", diverge)
    site.work(*site.parties)
    for party in site.parties:
        party.unmask()
    site.do_jobs()
    expected = simulated(site, params=H2TUNE, missing=[lost]).state.tensors
    assert largest_difference(site.state(run_id), expected) == 0
    assert [row.aggregated_in for row in site.updates(run_id)] == [None] * 4  # the delivery's
    with site.platform.session_factory() as session:
        [values] = session.scalars(select(Round.report).where(Round.round_number == 1)).all()
    assert values["num_dropouts"] == 1


class Killed(BaseException):
    """The process is gone: nothing of it is reported."""


@pytest.mark.parametrize("method", ["_compute", "_masked", "_hand_in"])
def test_a_killed_agent_says_the_same_words_again(
    site: Site, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = site.start_run()
    victim = site.parties[2]
    original = getattr(Agent, method)

    def die(self: Agent, *arguments: Any) -> Any:
        if self.spec.client_id == str(victim.client_id):
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Agent, method, die)
        site.work(*site.parties)
    store = StateFolder(victim.folder, victim.client_id)
    before = store.load_party(run_id, 1)
    site.end_leases()
    victim.work()
    after = store.load_party(run_id, 1)
    assert before is not None and after is not None
    assert (after.root, after.inbox) == (before.root, before.inbox)
    assert [row.fence for row in site.updates(run_id)] == [1, 1, 2, 1]
    for party in site.parties:
        party.unmask()
    with site.platform.session_factory() as session:
        [round_] = session.scalars(select(Round).where(Round.run_id == run_id)).all()
    assert round_.status is RoundStatus.AGGREGATING
    rounds.close_round(site.platform, round_.id)
    assert largest_difference(site.state(run_id), simulated(site).state.tensors) == 0


def test_too_few_survivors_open_nothing_until_the_others_answer(site: Site) -> None:
    policy = RoundPolicy(min_clients=3, deadline_seconds=3600, stragglers="drop")
    run_id = site.start_run(policy=policy)
    site.work(*site.parties)
    for party in site.parties[:2]:
        party.unmask()
    site.pass_deadline()
    run = site.run(run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "stays closed" in run.error
    assert "2 clients told their shares in time, 3 are needed" in run.error
    started = run.state_sha256
    site.parties[2].unmask()  # the run has failed: it asks, and keeps its secrets
    site.resume(run_id)
    assert (site.secure(run_id).number, site.secure(run_id).step) == (1, SecureStep.UNMASKING)
    assert not site.sent
    site.parties[2].unmask()
    site.do_jobs()
    assert site.run(run_id).state_sha256 != started
    assert largest_difference(site.state(run_id), simulated(site).state.tensors) == 0


def test_a_round_that_failed_before_the_sum_begins_another_session(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = site.start_run()
    lost = site.parties[0].client_id
    compute, num_trained = Agent._compute, []

    def diverge_once(self: Agent, *arguments: Any) -> Done:
        num_trained.append(self.spec.client_id)
        if num_trained.count(str(lost)) == 1 and self.spec.client_id == str(lost):
            raise NonFiniteError("The loss is NaN: lower the learning rate.")
        return compute(self, *arguments)

    monkeypatch.setattr(Agent, "_compute", diverge_once)
    site.work(*site.parties)
    assert site.run(run_id).status is RunStatus.FAILED
    roots = [stored_party(party, run_id).root for party in site.parties]
    site.resume(run_id)
    assert (site.secure(run_id).number, site.secure(run_id).step) == (2, SecureStep.KEYS)
    assert {row.status for row in site.updates(run_id)} == {UpdateStatus.PENDING}
    site.work(*site.parties)
    assert not {stored_party(party, run_id).root for party in site.parties} & set(roots)
    for party in site.parties:
        party.unmask()
    site.do_jobs()
    assert largest_difference(site.state(run_id), simulated(site).state.tensors) == 0


def stored_party(party: Party, run_id: UUID) -> PartyFile:
    file = StateFolder(party.folder, party.client_id).load_party(run_id, 1)
    assert file is not None
    return file


def test_clients_that_never_come_are_dropped_at_the_deadline_of_the_keys(site: Site) -> None:
    policy = RoundPolicy(min_clients=3, deadline_seconds=3600, stragglers="drop")
    run_id = site.start_run(policy=policy)
    *present, absent = site.parties
    with ThreadPoolExecutor(3) as pool:
        working = [pool.submit(party.work) for party in present]
        wait_until(lambda: num_parties(site) == 3)
        assert site.secure(run_id).step is SecureStep.KEYS
        site.pass_deadline()
        for done in working:
            done.result(120)
    statuses = {row.client_id: row.status for row in site.updates(run_id)}
    assert statuses[absent.client_id] is UpdateStatus.DROPPED
    assert site.secure(run_id).step is SecureStep.UNMASKING


def num_parties(site: Site) -> int:
    with site.platform.session_factory() as session:
        return session.scalar(select(func.count()).select_from(SecureParty)) or 0


def wait_until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_number_out_of_range_is_not_told_with_the_reason(site: Site) -> None:
    run_id = site.start_run(value_range=1e-6)
    site.work(*site.parties)
    error = site.run(run_id).error
    assert error is not None
    assert "larger than value_range, which is 1e-06: raise value_range" in error
    assert "A shared value is" not in error
    assert [row.shared_sha256 for row in site.updates(run_id)] == [None] * 4


def test_a_client_tells_its_shares_for_one_sum_only(site: Site) -> None:
    site.start_run()
    work = site.parties[0].api.agent.lease("here")
    assert work is not None and work.secure is not None
    known = begin(work, None, lambda: None)
    assert begin(work, known, lambda: None).root == known.root
    again = work.model_copy(update={"secure": SecureTask(session=2, threshold=3)})
    assert begin(again, known, lambda: None).root != known.root
    told = known.model_copy(update={"survivors": [site.parties[0].client_id]})
    with pytest.raises(MaskingError, match="second one could give a single update away"):
        begin(again, told, lambda: None)
    alone = work.model_copy(update={"secure": SecureTask(session=1, threshold=2)})
    with pytest.raises(MaskingError, match="threshold of 2 clients protects nobody"):
        begin(alone, None, lambda: None)


def test_what_comes_out_of_turn_or_differs_is_refused(site: Site) -> None:
    site.start_run()
    party = site.parties[0]
    agent = party.api.agent
    work = agent.lease("here")
    assert work is not None
    update_id = work.client_update_id
    key = "A" * 43 + "="
    keys = SecureKeys(fence=work.fence, session=1, cipher_key=key, mask_key=key)
    agent.announce_keys(update_id, keys)
    agent.announce_keys(update_id, keys)
    other = keys.model_copy(update={"mask_key": "B" * 43 + "="})
    shares = SecureShares(fence=work.fence, session=1, ciphertexts={party.client_id: "AAAA"})
    result = AgentResult(fence=work.fence, metrics={}, shared_sha256="0" * 64)
    told = SecureReveal(session=1, own_seeds={}, mask_keys={})
    later = keys.model_copy(update={"session": 2})
    for code, call in [
        ("secure_said_before", partial(agent.announce_keys, update_id, other)),
        (SESSION_OVER, partial(agent.announce_keys, update_id, later)),
        ("secure_wrong_step", partial(agent.send_shares, update_id, shares)),
        ("secure_wrong_step", partial(agent.upload_shared, update_id, work.fence, b"plain")),
        ("secure_wrong_step", partial(agent.finish, update_id, result)),
        ("secure_wrong_step", partial(agent.reveal, update_id, told)),
    ]:
        with pytest.raises(ApiError) as caught:
            call()
        assert (caught.value.status, caught.value.code) == (409, code)
