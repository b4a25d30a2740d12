"""Secure aggregation with real agents over real HTTP, two of them killed in mid-round.

One is started again and says the same words, the owner of the other gives up, and the round ends
without it.
What the platform then holds is what a simulation with the same dropout computes, and none of its
files holds an update in the clear.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
import torch
from pydantic import SecretStr

from backend.api_client import ApiClient
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.enums import EventKind, Execution, SecureStep, TaskKind, UpdateStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.runs import LiveRun, Round, RunCreate
from backend.contracts.training import TrainingConfig
from tests.running_platform import RunningPlatform, run_platform
from worker.agent.premises import open_premises
from worker.federated.base_models import load_base_model
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.types import Tensors
from worker.federated.wire import decode_state, decode_update

MODEL = "builtin:tiny_llama"
NUM_OWNERS = 4
CONFIG = TrainingConfig(local_steps=30, max_eval_examples=1)
SECURE = PrivacySettings(secure_aggregation=SecureAggregation(value_range=4.0))
POLICY = RoundPolicy(min_clients=3)


def data_of(number: int) -> str:
    rows = f"builtin:arithmetic_fill_in,seed={number},num_train={8 + 4 * number}"
    return f"{rows},num_validation=2,num_test=2"


@dataclass(frozen=True)
class Owner:
    """One client's own machine: a folder and an agent."""

    number: int
    folder: Path
    platform: RunningPlatform

    @property
    def name(self) -> str:
        return f"owner-{self.number}"

    def register(self, secret: str) -> Client:
        self.folder.mkdir()
        premises = open_premises(MODEL, data_of(self.number), TaskKind.FILL_IN)
        with ApiClient(self.platform.api_url) as api:
            registered = api.clients.register(
                ClientRegister(
                    enrolment_key=SecretStr(secret),
                    name=self.name,
                    execution=Execution.REMOTE,
                    base_model=premises.public_model(),
                    architecture=premises.architecture,
                    modules=premises.declared_modules(),
                    num_examples=len(premises.data.train),
                    lora_rank=2,
                    task=TaskKind.FILL_IN,
                )
            )
        (self.folder / "credential").write_text(registered.credential)
        return registered.client

    @contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        with (self.folder / "agent.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "worker.agent", "run", "--only-masked"),
                    *("--api-url", self.platform.api_url, "--model", MODEL),
                    *("--credential-file", str(self.folder / "credential")),
                    *("--data", data_of(self.number), "--state", str(self.folder / "state")),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def log(self) -> str:
        return f"--- {self.name}\n{(self.folder / 'agent.log').read_text()[-2000:]}"

    def update(self, client: Client, run_id: UUID, round_number: int) -> bytes:
        """What this owner computed in a round, in the clear; it never left the machine."""
        rounds = self.folder / "state" / str(client.id) / str(run_id)
        return (rounds / f"round-{round_number:05d}" / "shared.safetensors").read_bytes()


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    with run_platform(tmp_path / "home", FEDBRAID_LEASE_SECONDS="30") as running:
        yield running


def wait_for(
    api: ApiClient,
    run_id: UUID,
    owners: list[Owner],
    reached: Callable[[LiveRun], bool],
) -> LiveRun:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        live = api.runs.live(run_id)
        if reached(live):
            return live
        if live.run.status.is_terminal:
            break
        time.sleep(0.2)
    said = "\n".join(owner.log() for owner in owners)
    events = "\n".join(event.message for event in live.events)
    raise AssertionError(f"{live.run.status} {live.run.error}\n{events}\n{said}")


def newest(live: LiveRun) -> Round | None:
    return max(live.rounds, key=lambda r: r.round_number, default=None)


def exchanged(live: LiveRun) -> bool:
    """All keys and shares are here; everybody trains."""
    round_ = newest(live)
    return (
        round_ is not None
        and round_.secure is not None
        and round_.secure.step is SecureStep.INPUTS
        and all(update.status is UpdateStatus.TRAINING for update in round_.client_updates)
    )


@pytest.mark.timeout(900)  # ten processes start
def test_a_sum_is_opened_without_the_agent_that_was_killed_and_no_update_is_seen(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    owners = [Owner(n, tmp_path / f"owner-{n}", platform) for n in range(NUM_OWNERS)]
    with platform.sign_in() as api:
        key = EnrolmentKeyCreate(label="owners", max_uses=NUM_OWNERS)
        secret = api.enrolment_keys.create(key).secret
        clients = {owner.number: owner.register(secret) for owner in owners}
        run_id = start_run(api, list(clients.values()))
        *steady, restarted, lost = owners
        with ExitStack() as running:
            for owner in steady:
                running.enter_context(owner.agent())
            with restarted.agent() as first, lost.agent() as second:
                wait_for(api, run_id, owners, exchanged)
                for agent in (first, second):
                    agent.send_signal(signal.SIGKILL)
                    agent.wait()
            api.clients.refuse(clients[lost.number].id, run_id, "Its machine is gone.")
            running.enter_context(restarted.agent())
            live = wait_for(api, run_id, owners, aggregated)
            api.runs.cancel(run_id)
    opened = next(round_ for round_ in live.rounds if round_.round_number == 1)
    found = {update.client_name: update for update in opened.client_updates}
    assert found.pop(lost.name).status is UpdateStatus.DECLINED
    assert {update.status for update in found.values()} == {UpdateStatus.ACCEPTED}
    assert found[restarted.name].num_attempts == 2
    assert opened.report["num_dropouts"] == 1
    assert_state_is_that_of_a_simulation(platform.home, clients, lost.number)
    for owner in (*steady, restarted):
        assert_update_is_nowhere(platform.home, owner.update(clients[owner.number], run_id, 1))


def start_run(api: ApiClient, clients: list[Client]) -> UUID:
    federation = api.federations.create(
        FederationCreate(name="owners", client_ids=[client.id for client in clients], global_rank=4)
    )
    run = api.federations.create_run(
        federation.id,
        RunCreate(
            strategy=FedItParams(),
            num_rounds=1,
            seed=3,
            training=CONFIG,
            privacy=SECURE,
            round_policy=POLICY,
        ),
    )
    api.runs.start(run.id)
    return run.id


def aggregated(live: LiveRun) -> bool:
    return any(event.kind is EventKind.ROUND_AGGREGATED for event in live.events)


def assert_state_is_that_of_a_simulation(
    home: Path, members: dict[int, Client], missing: int
) -> None:
    simulated = []
    for number, client in members.items():
        premises = open_premises(MODEL, data_of(number), TaskKind.FILL_IN)
        model, tokenizer = load_base_model(
            premises.model, device=torch.device("cpu"), dtype=torch.float32
        )
        simulated.append(
            SimulatedClient(str(client.id), model, tokenizer, premises.data, 2, client.lora_alpha)
        )
    result = simulate(
        FedItParams(),
        simulated,
        num_rounds=1,
        training=CONFIG,
        global_rank=4,
        seed=3,
        privacy=SECURE,
        dropouts=lambda _number: [str(members[missing].id)],
    )
    states = list(stored_states(home))
    assert len(states) == 2, "the one before round 1 and the one after it"
    differences = [largest_difference(state, result.state.tensors) for state in states]
    assert min(differences) < 1e-6
    assert max(differences) > 1e-3, "the round has changed the state"


def stored_states(home: Path) -> Iterator[Tensors]:
    for path in home.rglob("*"):
        if path.is_file() and "blobs" in path.parts:
            content = path.read_bytes()
            if b'\\"message\\":\\"state\\"' in content[:100_000]:
                yield decode_state(content).tensors


def largest_difference(one: Tensors, other: Tensors) -> float:
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


def assert_update_is_nowhere(home: Path, update: bytes) -> None:
    """No file of the platform (blobs, database, logs) holds a tensor of it.

    Masks and the like are no secrets, and so short that their bytes are found anywhere.
    """
    tensors = decode_update(update).shared.values()
    secrets = [t.numpy().tobytes() for t in tensors if t.is_floating_point() and t.numel() > 8]
    assert len(secrets) >= 7
    for path in home.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in secrets), path
