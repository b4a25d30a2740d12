"""A client's own agent beside a managed client, against real processes, with the agent killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import torch
from peft import PeftModel

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import Client, ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import EventKind, Execution, RunStatus, UpdateStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import LiveRun, RunCreate
from backend.contracts.training import TrainingConfig
from tests.running_platform import RunningPlatform, run_platform
from worker.federated.base_models import load_base_model
from worker.federated.types import Tensors
from worker.federated.wire import decode_private

MODEL = "builtin:tiny_gemma"
SECRET_WORD = "Ornithorhynchus"
NAME = "own-machine"


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    with run_platform(tmp_path / "home", FEDBRAID_LEASE_SECONDS="4") as running:
        yield running


def write_data(path: Path) -> None:
    splits = ["train"] * 8 + ["validation"] * 4 + ["test"] * 4
    rows = (
        {"question": f"{SECRET_WORD}: {n} plus 3?", "answer": str(n + 3), "split": split}
        for n, split in enumerate(splits)
    )
    path.write_text("\n".join(map(json.dumps, rows)))


def agent_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "worker.agent", *arguments]


def register(platform: RunningPlatform, folder: Path, secret: str) -> None:
    subprocess.run(
        agent_command(
            *("register", "--api-url", platform.api_url, "--name", NAME, "--model", MODEL),
            *("--data", str(folder / "data.jsonl"), "--task", "fill_in", "--lora-rank", "4"),
            *("--credential-file", str(folder / "credential")),
        ),
        env={**os.environ, "FEDBRAID_ENROLMENT_KEY": secret},
        check=True,
        timeout=120,
    )


@contextmanager
def running_agent(platform: RunningPlatform, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "agent.log").open("ab") as log:
        process = subprocess.Popen(
            agent_command(
                *("run", "--api-url", platform.api_url, "--model", MODEL),
                *("--credential-file", str(folder / "credential")),
                *("--data", str(folder / "data.jsonl"), "--state", str(folder / "state")),
            ),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def start_run(api: ApiClient, client_ids: list[UUID]) -> UUID:
    federation = api.federations.create(
        FederationCreate(name="mixed", global_rank=16, client_ids=client_ids)
    )
    run = api.federations.create_run(
        federation.id,
        RunCreate(
            # Everything private is trained, and so tells something of the data: what is not
            # trained, such as a mask at its start, is alike for all clients and no secret.
            strategy=H2TuneParams(gauge="none", mask_warmup_rounds=1, train_alignment=True),
            num_rounds=1,
            seed=1,
            training=TrainingConfig(local_steps=120, max_eval_examples=4),
        ),
    )
    api.runs.start(run.id)
    return run.id


def register_managed(api: ApiClient, secret: str) -> Client:
    task = BuiltinTaskName.ARITHMETIC_CHOICE
    return api.clients.register(
        ClientRegister(
            enrolment_key=secret,
            name="managed",
            base_model=BaseModelRef(source="builtin", id="tiny_llama"),
            lora_rank=8,
            task=BUILTIN_TASK_KINDS[task],
            dataset=BuiltinDataset(task=task, num_train=16, num_validation=8, num_test=16),
        )
    ).client


def wait_for(
    platform: RunningPlatform,
    folder: Path,
    api: ApiClient,
    run_id: UUID,
    reached: Callable[[LiveRun], bool],
) -> LiveRun:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        live = api.runs.live(run_id)
        if reached(live):
            return live
        said = (folder / "agent.log").read_text()[-4000:]
        assert not live.run.status.is_terminal, f"{live.run.error}\n{said}\n{platform.log()}"
        time.sleep(0.2)
    raise AssertionError(f"not reached: {live.run}\n{said}\n{platform.log()}")


def trains_remotely(live: LiveRun) -> bool:
    return any(
        update.client_name == NAME
        and update.status is UpdateStatus.TRAINING
        and update.stage == "training"
        for round_ in live.rounds
        for update in round_.client_updates
    )


def completed(live: LiveRun) -> bool:
    return live.run.status is RunStatus.COMPLETED


@pytest.mark.timeout(600)  # six processes start, two of them twice
def test_a_killed_agent_completes_its_run_and_keeps_its_secrets(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    folder = tmp_path / "premises"
    folder.mkdir()
    write_data(folder / "data.jsonl")
    with platform.sign_in() as api:
        secret = api.enrolment_keys.create(EnrolmentKeyCreate(label="mixed", max_uses=2)).secret
        register(platform, folder, secret)
        managed = register_managed(api, secret)
        remote = next(client for client in api.clients.list() if client.name == NAME)
        assert (remote.execution, remote.dataset, remote.num_examples) == (
            Execution.REMOTE,
            None,
            8,
        )
        run_id = start_run(api, [managed.id, remote.id])
        with running_agent(platform, folder) as agent:
            wait_for(platform, folder, api, run_id, trains_remotely)
            agent.send_signal(signal.SIGKILL)
            agent.wait()
        with running_agent(platform, folder) as agent:
            live = wait_for(platform, folder, api, run_id, completed)
            agent.send_signal(signal.SIGTERM)
            assert agent.wait(30) == 0, "not a clean stop"
    assert_the_killed_attempt_was_made_good(live, remote.id)
    state = folder / "state" / str(remote.id) / str(run_id)
    assert_adapter_loads(state / "adapter")
    private = decode_private((state / "round-00001" / "private.safetensors").read_bytes())
    assert_nothing_leaked(platform.home, private)


def assert_the_killed_attempt_was_made_good(live: LiveRun, client_id: UUID) -> None:
    attempts = [
        update.num_attempts
        for round_ in live.rounds
        for update in round_.client_updates
        if update.client_id == client_id
    ]
    assert attempts == [2, 1]
    expired = [event for event in live.events if event.kind is EventKind.ATTEMPT_EXPIRED]
    assert [event.client_id for event in expired] == [client_id]
    measured = {point.name for point in live.metrics if point.client_id == client_id}
    assert {MetricName.ACCURACY_DELIVERED, MetricName.BYTES_UP, MetricName.SPARSITY} <= measured


def assert_adapter_loads(folder: Path) -> None:
    model, tokenizer = load_base_model(
        BaseModelRef(source="builtin", id="tiny_gemma"),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    tokens = tokenizer("3 plus 4", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        before = model(tokens).logits
        after = PeftModel.from_pretrained(model, str(folder))(tokens).logits
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def assert_nothing_leaked(home: Path, private: Tensors) -> None:
    """No file of the platform (blobs, database, logs) holds a row or a private tensor."""
    secrets = {
        name: tensor.numpy().tobytes()
        for name, tensor in private.items()
        if tensor.numel() > 8 and tensor.any()
    }
    assert len(secrets) > 20
    files = [path for path in home.rglob("*") if path.is_file()]
    assert len([path for path in files if "blobs" in path.parts]) > 6
    for path in files:
        content = path.read_bytes()
        assert SECRET_WORD.encode() not in content, path
        assert not [name for name, data in secrets.items() if data in content], path
