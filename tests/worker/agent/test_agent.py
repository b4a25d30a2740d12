"""The agent against the real application, database and blob store, without a network."""

import logging
import os
import stat
import threading
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import torch
from peft import PeftModel
from pydantic import SecretStr
from sqlalchemy import select
from starlette.testclient import TestClient

from backend import jobs
from backend.api_client import ApiClient
from backend.contracts.agent import AgentResult, Work
from backend.contracts.clients import ClientRegister
from backend.contracts.enums import EventKind, Execution, RunStatus, TaskKind, UpdateStatus
from backend.contracts.jobs import Job
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings
from backend.contracts.training import TrainingConfig
from backend.db.ids import new_id
from backend.db.models import Attempt, Blob, ClientUpdate, Event, Metric
from backend.db.session import SessionFactory
from backend.lifecycle import cancel_run
from backend.settings import Settings
from backend.storage import BlobStore
from tests.factories import Caller, make_key
from tests.worker.agent.in_process import InProcess, Site
from worker.agent import patience
from worker.agent.agent import Agent
from worker.agent.errors import AgentError, AgentStoppingError
from worker.agent.premises import Premises, open_premises
from worker.agent.store import StateFolder
from worker.federated import types
from worker.federated.base_models import load_base_model
from worker.federated.errors import ProbeTextError
from worker.federated.objectives.loading import load_for_task
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.wire import decode_plan, decode_private, decode_update, encode_update
from worker.platform import Platform

MODEL = "builtin:tiny_gemma"
SECRET_WORD = "Quixotic"


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    splits = ["train"] * 4 + ["validation"] * 2 + ["test"] * 2
    path.write_text(
        "\n".join(
            f'{{"question": "{SECRET_WORD} {n} plus 1?", "answer": "{n + 1}", "split": "{split}"}}'
            for n, split in enumerate(splits)
        )
    )
    return path


@pytest.fixture
def premises(data_file: Path) -> Premises:
    return open_premises(MODEL, str(data_file), TaskKind.FILL_IN)


@pytest.fixture
def site(
    http: TestClient,
    operator: Caller,
    session_factory: SessionFactory,
    blob_store: BlobStore,
    settings: Settings,
    premises: Premises,
    monkeypatch: pytest.MonkeyPatch,
) -> Site:
    sent: list[Job] = []
    monkeypatch.setattr(jobs, "enqueue", sent.append)
    monkeypatch.setattr(patience, "FIRST_WAIT_SECONDS", 0.01)
    line = InProcess(http)
    api = ApiClient("http://platform.test", transport=line, max_retries=0)
    registered = api.clients.register(
        ClientRegister(
            enrolment_key=SecretStr(make_key(operator)["secret"]),
            name="own-machine",
            execution=Execution.REMOTE,
            base_model=premises.public_model(),
            architecture=premises.architecture,
            modules=premises.declared_modules(),
            num_examples=4,
            lora_rank=4,
            task=TaskKind.FILL_IN,
        )
    )
    api.use_token(registered.credential)
    platform = Platform(session_factory, blob_store, settings)
    return Site(platform, sent, line, api, registered.client.id)


def make_agent(site: Site, premises: Premises, state: Path) -> Agent:
    client = site.api.clients.me()
    return Agent(
        site.api,
        "here",
        premises.spec(client),
        premises,
        StateFolder(state, client.id),
        threading.Event(),
    )


def do_next(site: Site, agent: Agent) -> None:
    work = site.api.agent.lease("here")
    assert work is not None
    agent.do(work)


def remote_updates(site: Site) -> list[ClientUpdate]:
    with site.platform.session_factory() as session:
        return list(
            session.scalars(
                select(ClientUpdate)
                .where(ClientUpdate.client_id == site.client_id)
                .order_by(ClientUpdate.id)
            )
        )


def refused_events(site: Site) -> list[Event]:
    with site.platform.session_factory() as session:
        return list(session.scalars(select(Event).where(Event.kind == EventKind.UPDATE_REFUSED)))


def test_a_run_of_a_managed_and_a_remote_client_completes_and_nothing_private_leaves(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run(num_rounds=2)
    private: types.Tensors = {}
    for round_number in (1, 2, 3):
        site.do_jobs()
        do_next(site, agent)
        kept = agent.store.load_private(run_id, round_number)
        private |= {f"{round_number}/{name}": t for name, t in (kept or {}).items()}
        site.do_jobs()
    run = site.run(run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)

    updates = remote_updates(site)
    assert [update.status for update in updates] == [UpdateStatus.ACCEPTED] * 3
    assert [bool(update.shared_sha256) for update in updates] == [True, True, False]
    assert {update.private_sha256 for update in updates} == {None}
    assert {update.adapter_sha256 for update in updates} == {None}

    secrets = {n: t.numpy().tobytes() for n, t in private.items() if t.numel() > 8 and t.any()}
    assert any("factors/A" in name or "/A/" in name for name in secrets), sorted(secrets)[:5]
    with site.platform.session_factory() as session:
        blobs = [
            site.platform.store.read(sha256) for sha256 in session.scalars(select(Blob.sha256))
        ]
    assert len(blobs) > 6
    for blob in blobs:
        assert SECRET_WORD.encode() not in blob
        assert not [name for name, data in secrets.items() if data in blob]

    adapter = agent.store.adapter_folder(run_id)
    model, _ = load_base_model(premises.model, device=torch.device("cpu"), dtype=torch.float32)
    assert PeftModel.from_pretrained(model, str(adapter)).peft_config
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert not list((tmp_path / "state").rglob("round-00001")), "no later round needs it"


def test_what_was_trained_is_handed_in_later_and_not_trained_twice(
    site: Site, premises: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run()
    site.do_jobs()
    site.line.dead = {"result", "release"}
    asked = threading.Event()

    class StopWhenDead(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            asked.set()
            return True

    first = Agent(site.api, "here", agent.spec, premises, agent.store, StopWhenDead())
    do_next(site, first)
    assert asked.is_set(), "the dead line was never met"
    assert remote_updates(site)[0].status is UpdateStatus.TRAINING
    site.line.dead = set()
    work_id = remote_updates(site)[0].id
    site.api.agent.release(work_id, 1)

    def explode(*_: object) -> None:
        raise AssertionError("trained twice")

    monkeypatch.setattr(H2Tune, "train_client", explode)
    do_next(site, make_agent(site, premises, tmp_path / "state"))
    update = remote_updates(site)[0]
    assert (update.status, update.fence) == (UpdateStatus.ACCEPTED, 2)
    site.do_jobs()
    assert site.run(run_id).round_number == 2


def test_an_agent_that_must_stop_gives_its_work_back(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    site.start_run()
    agent.stop.set()
    do_next(site, agent)
    with site.platform.session_factory() as session:
        outcomes = session.scalars(select(Attempt.outcome)).all()
    assert outcomes == ["released"]
    assert remote_updates(site)[0].status is UpdateStatus.PENDING


def test_a_cancelled_run_is_dropped(site: Site, premises: Premises, tmp_path: Path) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run()
    work = site.api.agent.lease("here")
    assert work is not None
    with site.platform.session_factory() as session:
        cancel_run(session, run_id, "tests")
        session.commit()
    agent.do(work)
    assert site.run(run_id).status is RunStatus.CANCELLED
    assert remote_updates(site)[0].status is UpdateStatus.CANCELLED
    assert not set(site.line.seen) & {"failure", "release"}


def test_a_row_that_cannot_be_learnt_is_not_quoted_to_the_platform(
    site: Site, premises: Premises, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run()
    data = premises.data
    broken = tuple(row.model_copy(update={"answer": "9" * 5000}) for row in data.train)
    broken_data = types.ClientData(data.task, broken, data.validation, data.test)
    here = Premises(premises.model, premises.architecture, premises.modules, broken_data)
    do_next(site, Agent(site.api, "here", agent.spec, here, agent.store, threading.Event()))
    error = site.run(run_id).error
    assert error is not None
    assert "own-machine failed" in error
    assert "the log of the client's agent has the details" in error
    assert SECRET_WORD not in error
    assert SECRET_WORD in caplog.text, "its owner sees it"


def test_a_probe_text_that_is_too_long_is_named_for_those_who_chose_it(
    site: Site, premises: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot_read(*_args: object, **_options: object) -> None:
        raise ProbeTextError("The probe text 'Once upon' has 600 tokens.")

    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run()
    monkeypatch.setattr(Agent, "_local_client", cannot_read)
    do_next(site, agent)
    error = site.run(run_id).error
    assert error is not None
    assert "The probe text 'Once upon' has 600 tokens." in error


def test_state_that_is_gone_is_not_replaced_by_a_fresh_start(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    run_id = site.start_run()
    site.do_jobs()
    do_next(site, make_agent(site, premises, tmp_path / "state"))
    site.do_jobs()
    do_next(site, make_agent(site, premises, tmp_path / "another"))
    error = site.run(run_id).error
    assert error is not None
    assert "not in its agent's state folder" in error


def test_an_update_that_cannot_be_aggregated_fails_the_run_with_its_sender(site: Site) -> None:
    run_id = site.start_run()
    site.do_jobs()
    work = site.api.agent.lease("here")
    assert work is not None
    message = encode_update(
        types.ClientUpdate(
            client_id=str(site.client_id),
            round_number=1,
            num_examples=4,
            shared={"values/q": torch.full((6, 16), float("nan"))},
            private={},
            metrics={},
        )
    )
    receipt = site.api.agent.upload_shared(work.client_update_id, 1, message)
    site.api.agent.finish(work.client_update_id, AgentResult(fence=1, shared_sha256=receipt.sha256))
    site.do_jobs()  # does not raise
    run = site.run(run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error.startswith("The update of own-machine in round 1 was refused: ")
    assert "NaN or infinity" in run.error
    (refused,) = refused_events(site)
    assert (refused.client_id, refused.message) == (site.client_id, run.error)


def test_an_update_that_is_refused_on_arrival_is_a_failure_and_the_agent_lives(
    site: Site, premises: Premises, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = site.start_run()

    def swollen(update: types.ClientUpdate) -> bytes:
        return encode_update(replace(update, num_examples=4_000_000))

    monkeypatch.setattr("worker.agent.agent.encode_update", swollen)
    do_next(site, make_agent(site, premises, tmp_path / "state"))  # does not raise
    site.do_jobs()
    error = site.run(run_id).error
    assert error is not None
    assert "states num_examples '4000000', expected is '4'" in error
    assert refused_events(site)[0].data["code"] == "update_wrong_weight"


def test_another_model_or_other_data_are_refused_at_the_start(
    site: Site, premises: Premises, data_file: Path
) -> None:
    client = site.api.clients.me()
    other = open_premises("builtin:tiny_llama", str(data_file), TaskKind.FILL_IN)
    with pytest.raises(AgentError, match="is not the base model with which own-machine"):
        other.spec(client)
    with data_file.open("a") as file:
        file.write('\n{"question": "8 plus 1?", "answer": "9", "split": "train"}')
    more = open_premises(MODEL, str(data_file), TaskKind.FILL_IN)
    with pytest.raises(AgentError, match="has 5 training rows, but own-machine registered 4"):
        more.spec(client)


def test_a_second_agent_on_one_state_folder_is_refused(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with StateFolder(folder, site.client_id).locked():
        with (
            pytest.raises(AgentError, match=rf"process {os.getpid()}.*another --state"),
            StateFolder(folder, site.client_id).locked(),
        ):
            raise AssertionError("not reached")
        with StateFolder(folder, new_id()).locked():
            pass  # another client may share the folder
    with StateFolder(folder, site.client_id).locked():
        pass  # free again


def test_a_round_that_was_interrupted_goes_on(
    site: Site, premises: Premises, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    agent = make_agent(site, premises, tmp_path / "state")
    run_id = site.start_run()
    site.do_jobs()

    class StopAfterOneStep(StateFolder):
        def save_checkpoint(self, work: Work, tensors: types.Tensors) -> None:
            super().save_checkpoint(work, tensors)
            raise AgentStoppingError

    interrupted = StopAfterOneStep(tmp_path / "state", site.client_id)
    do_next(site, replace(agent, store=interrupted, checkpoint_seconds=0))
    path = next((tmp_path / "state").rglob("checkpoint.safetensors"))
    assert int(decode_private(path.read_bytes())["step"]) == 1
    do_next(site, agent)
    assert "going on after step 1 of 2" in caplog.text
    assert not path.exists()
    kept = agent.store.load_private(run_id, 1)
    fresh = make_agent(site, premises, tmp_path / "other")
    assert_same_as_undisturbed(site, fresh, run_id, kept)


def assert_same_as_undisturbed(
    site: Site, agent: Agent, run_id: UUID, kept: types.Tensors | None
) -> None:
    """The same plan, trained in one go."""
    assert kept is not None
    plan = decode_plan(site.platform.store.read(remote_updates(site)[0].plan_sha256))
    model, objective = load_for_task(
        agent.premises.model,
        agent.premises.data,
        TrainingConfig.model_validate(site.run(run_id).training),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    client = types.LocalClient(
        spec=agent.spec,
        model=model,
        objective=objective,
        data=agent.premises.data,
        training=TrainingConfig.model_validate(site.run(run_id).training),
        private=None,
    )
    whole = H2Tune(H2TuneParams()).train_client(plan, client).private
    assert whole.keys() == kept.keys()
    assert [name for name in whole if not torch.equal(whole[name], kept[name])] == []


def test_noise_is_drawn_once_and_a_second_attempt_sends_the_same_bytes(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    """Two noised versions of one update, averaged, would have less noise than was promised."""
    noise = DifferentialPrivacy(noise_multiplier=2.0, clip_norm=0.5)
    site.start_run(
        params=H2TuneParams(gauge="none", train_alignment=False, mask_warmup_rounds=0),
        privacy=PrivacySettings(differential_privacy=noise),
    )
    site.do_jobs()
    site.line.dead = {"result", "release"}

    class StopWhenDead(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            return True

    agent = make_agent(site, premises, tmp_path / "state")
    do_next(site, Agent(site.api, "here", agent.spec, premises, agent.store, StopWhenDead()))
    waiting = remote_updates(site)[0]
    sent_first = waiting.shared_sha256
    assert sent_first is not None
    site.line.dead = set()
    site.api.agent.release(waiting.id, 1)
    do_next(site, make_agent(site, premises, tmp_path / "state"))
    update = remote_updates(site)[0]
    assert (update.status, update.fence) == (UpdateStatus.ACCEPTED, 2)
    assert update.shared_sha256 == sent_first
    shared = decode_update(site.platform.store.read(sent_first))
    assert shared.metrics[MetricName.EPSILON] == noise.epsilon_after(1)
    assert MetricName.TRAIN_LOSS not in shared.metrics
    values = torch.cat([t.flatten() for n, t in shared.shared.items() if n.startswith("values/")])
    assert float(values.std()) == pytest.approx(2.0 * 0.5, rel=0.1)
    with site.platform.session_factory() as session:
        of_client = select(Metric.name).where(Metric.client_id == site.client_id)
        names = set(session.scalars(of_client))
    assert MetricName.EPSILON in names
    assert not names & {MetricName.TRAIN_LOSS, MetricName.ACCURACY_AFTER_TRAINING}


def test_an_owner_may_refuse_runs_with_too_little_noise(
    site: Site, premises: Premises, tmp_path: Path
) -> None:
    agent = replace(make_agent(site, premises, tmp_path / "state"), max_epsilon=4.0)
    run_id = site.start_run()
    do_next(site, agent)
    told = "own-machine does not take part in this run: This run has no differential privacy"
    assert told in str(site.run(run_id).error)
    (refusal,) = site.api.clients.refusals(site.client_id)
    assert (refusal.run_id, refusal.refused_by) == (run_id, "own-machine")
    assert "upload" not in site.line.seen
    assert not list((tmp_path / "state").rglob("*.safetensors"))
