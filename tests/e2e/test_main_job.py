"""The main job against real processes over HTTP, with workers and the platform really killed."""

import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psutil
import pytest
import torch
from peft import PeftModel

from backend.api_client import ApiClient
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import EventKind, RunStatus, UpdateStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.runs import LiveRun, RunCreate
from backend.contracts.training import TrainingConfig
from tests.running_platform import RunningPlatform, run_platform, stop
from worker.federated.base_models import load_base_model

CLIENTS = [
    ("tiny_llama", 4, BuiltinTaskName.ARITHMETIC_FILL_IN),
    ("tiny_gemma", 8, BuiltinTaskName.ARITHMETIC_CHOICE),
    ("tiny_qwen2", 16, BuiltinTaskName.ARITHMETIC_PROGRAM),
]
SHORT = TrainingConfig(local_steps=6, max_eval_examples=16)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningPlatform]:
    home = tmp_path_factory.mktemp("home")
    with run_platform(home, FEDBRAID_LEASE_SECONDS="4") as running:
        yield running


def create_federation(api: ApiClient, name: str) -> tuple[UUID, list[UUID]]:
    key = api.enrolment_keys.create(EnrolmentKeyCreate(label=name, max_uses=len(CLIENTS)))
    client_ids = []
    for model, rank, task in CLIENTS:
        registered = api.clients.register(
            ClientRegister(
                enrolment_key=key.secret,
                name=f"{name}-{model}",
                base_model=BaseModelRef(source="builtin", id=model),
                lora_rank=rank,
                task=BUILTIN_TASK_KINDS[task],
                dataset=BuiltinDataset(task=task, num_train=16, num_validation=8, num_test=16),
            )
        )
        client_ids.append(registered.client.id)
    federation = api.federations.create(
        FederationCreate(name=name, global_rank=16, client_ids=client_ids)
    )
    return federation.id, client_ids


def start_run(api: ApiClient, federation_id: UUID, num_rounds: int = 2, **training: int) -> UUID:
    run = api.federations.create_run(
        federation_id,
        RunCreate(
            strategy=H2TuneParams(),
            num_rounds=num_rounds,
            seed=1,
            training=SHORT.model_copy(update=training),
        ),
    )
    api.runs.start(run.id)
    return run.id


def wait_for(
    platform: RunningPlatform,
    api: ApiClient,
    run_id: UUID,
    reached: Callable[[LiveRun], bool],
    seconds: float = 400,
) -> LiveRun:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        live = api.runs.live(run_id)
        if reached(live):
            return live
        assert not live.run.status.is_terminal, f"{live.run.error}\n{platform.log()}"
        time.sleep(0.2)
    raise AssertionError(f"not reached in {seconds} s: {live.run}\n{platform.log()}")


def completed(live: LiveRun) -> bool:
    return live.run.status is RunStatus.COMPLETED


def training_now(live: LiveRun) -> bool:
    return any(
        update.status is UpdateStatus.TRAINING and update.stage == "training"
        for round_ in live.rounds
        for update in round_.client_updates
    )


def test_three_different_models_end_with_adapters_that_stock_peft_loads(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    with platform.sign_in() as api:
        federation_id, client_ids = create_federation(api, "main-job")
        run_id = start_run(api, federation_id)
        live = wait_for(platform, api, run_id, completed)
        names = {(point.client_id, point.name) for point in live.metrics}
        for client_id in client_ids:
            for name in (
                MetricName.ACCURACY_BEFORE_TRAINING,
                MetricName.ACCURACY_DELIVERED,
                MetricName.BYTES_UP,
                MetricName.BYTES_DOWN,
                MetricName.SPARSITY,
            ):
                assert (client_id, name) in names
        sparsity = {p.client_id: p.value for p in live.metrics if p.name is MetricName.SPARSITY}
        expected = [1 - (rank / 16) ** 2 for _, rank, _ in CLIENTS]
        assert [sparsity[client_id] for client_id in client_ids] == pytest.approx(expected)
        for client_id, (model_name, _, _) in zip(client_ids, CLIENTS, strict=True):
            archive = api.runs.download_adapter(run_id, client_id, tmp_path / f"{model_name}.zip")
            folder = tmp_path / model_name
            with zipfile.ZipFile(archive) as file:
                file.extractall(folder)
            assert_changes_the_model(model_name, folder)


def assert_changes_the_model(model_name: str, folder: Path) -> None:
    model, tokenizer = load_base_model(
        BaseModelRef(source="builtin", id=model_name),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    tokens = tokenizer("3 plus 4", return_tensors="pt")
    with torch.no_grad():
        before = model(tokens["input_ids"]).logits
        adapted = PeftModel.from_pretrained(model, str(folder))
        after = adapted(tokens["input_ids"]).logits
    assert torch.isfinite(after).all()
    assert not torch.equal(before, after)


def test_a_worker_killed_in_mid_training_costs_an_attempt_and_not_the_run(
    platform: RunningPlatform,
) -> None:
    with platform.sign_in() as api:
        federation_id, _ = create_federation(api, "killed-worker")
        run_id = start_run(api, federation_id, num_rounds=1, local_steps=250)
        wait_for(platform, api, run_id, training_now)
        for worker in platform.workers("train"):
            worker.send_signal(signal.SIGKILL)
        live = wait_for(platform, api, run_id, completed)
    attempts = [u.num_attempts for r in live.rounds for u in r.client_updates]
    assert max(attempts) > 1
    kinds = [event.kind for event in live.events]
    assert EventKind.ATTEMPT_EXPIRED in kinds
    assert kinds.count(EventKind.ROUND_AGGREGATED) == 1


def test_a_cancelled_run_frees_its_worker(platform: RunningPlatform) -> None:
    with platform.sign_in() as api:
        federation_id, _ = create_federation(api, "cancelled")
        run_id = start_run(api, federation_id, num_rounds=1, local_steps=100_000)
        wait_for(platform, api, run_id, training_now)
        assert api.runs.cancel(run_id).status is RunStatus.CANCELLED
        next_id = start_run(api, federation_id, num_rounds=1)
        wait_for(platform, api, next_id, completed)


@pytest.mark.timeout(900)  # two platforms start
def test_a_platform_killed_outright_goes_on_where_it_was(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with run_platform(home, FEDBRAID_LEASE_SECONDS="4") as first:
        with first.sign_in() as api:
            federation_id, _ = create_federation(api, "restart")
            run_id = start_run(api, federation_id, num_rounds=2, local_steps=60)
            wait_for(first, api, run_id, training_now)
        children = first.children()
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        _, left = psutil.wait_procs(children, timeout=30)
        assert left == [], "children outlived a killed platform"
    with run_platform(home, FEDBRAID_LEASE_SECONDS="4") as second:
        with second.sign_in() as api:
            live = wait_for(second, api, run_id, completed)
        assert live.run.round_number == 3
        assert stop(second) == [], "processes were left behind after Ctrl-C"
