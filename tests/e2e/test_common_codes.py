"""Codes that the models of remote clients agree on, over real HTTP and behind masks.

One agent is killed while its model reads the probe texts, and started again.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from backend.contracts.clients import EnrolmentKeyCreate
from backend.contracts.enums import RoundKind, RunStatus, SecureStep, TaskKind, UpdateStatus
from backend.contracts.federations import FederationCreate
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import PrivacySettings, SecureAggregation
from backend.contracts.probe_sets import encode_probe_set
from backend.contracts.runs import LiveRun, RunCreate
from backend.contracts.training import TrainingConfig
from tests.e2e.test_secure_aggregation import (
    MODEL,
    Owner,
    assert_update_is_nowhere,
    data_of,
    newest,
    stored_states,
    wait_for,
)
from tests.running_platform import RunningPlatform, run_platform
from worker.agent.premises import open_premises
from worker.federated.base_models import load_base_model
from worker.federated.simulation import SimulatedClient, simulate

PARAMS = H2TuneParams(gauge="probe", codes="exchange")
CONFIG = TrainingConfig(local_steps=2, max_eval_examples=1)
TEXTS = [f"Clinic {number} has {number % 7} beds and {number % 5} wards." for number in range(60)]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[RunningPlatform]:
    with run_platform(tmp_path / "home", FEDBRAID_LEASE_SECONDS="10") as running:
        yield running


def reads_probes(live: LiveRun) -> bool:
    """Masks are agreed on, and everybody's model is at work on the texts."""
    round_ = newest(live)
    return (
        round_ is not None
        and round_.kind is RoundKind.GAUGE
        and round_.secure is not None
        and round_.secure.step is SecureStep.INPUTS
        and any(update.status is UpdateStatus.TRAINING for update in round_.client_updates)
    )


def completed(live: LiveRun) -> bool:
    return live.run.status is RunStatus.COMPLETED


@pytest.mark.timeout(900)  # nine processes start
def test_agents_agree_on_codes_behind_masks_and_train_with_them(
    platform: RunningPlatform, tmp_path: Path
) -> None:
    owners = [Owner(n, tmp_path / f"owner-{n}", platform) for n in range(3)]
    with platform.sign_in() as api:
        secret = api.enrolment_keys.create(EnrolmentKeyCreate(label="owners", max_uses=3)).secret
        clients = {owner.number: owner.register(secret) for owner in owners}
        federation = api.federations.create(
            FederationCreate(name="owners", client_ids=[c.id for c in clients.values()])
        )
        pinned = api.federations.upload_probe_set(federation.id, encode_probe_set(TEXTS))
        run = api.federations.create_run(
            federation.id,
            RunCreate(
                strategy=PARAMS,
                num_rounds=1,
                training=CONFIG,
                privacy=PrivacySettings(secure_aggregation=SecureAggregation()),
            ),
        )
        assert run.probe_set_sha256 == pinned.sha256
        api.runs.start(run.id)
        with ExitStack() as running:
            killed = running.enter_context(owners[0].agent())
            for owner in owners[1:]:
                running.enter_context(owner.agent())
            wait_for(api, run.id, owners, reads_probes)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            running.enter_context(owners[0].agent())
            live = wait_for(api, run.id, owners, completed)
    kinds = {round_.round_number: round_.kind for round_ in live.rounds}
    assert kinds == {0: RoundKind.GAUGE, 1: RoundKind.TRAIN, 2: RoundKind.DELIVER}
    sent = {
        point.client_id: point.value
        for point in live.metrics
        if point.name is MetricName.BYTES_UP_VALUES and point.round_number == 0
    }
    assert sent == dict.fromkeys([client.id for client in clients.values()], 14 * 4 * 60 * 61 / 2)
    opened = next(round_ for round_ in live.rounds if round_.kind is RoundKind.GAUGE)
    assert opened.report["num_dropouts"] == 0
    assert opened.report["rounding_error_bound"] > 0  # only a sum was opened
    for owner in owners:
        update = owner.update(clients[owner.number], run.id, 1)
        assert_update_is_nowhere(platform.home, update)
    simulated = []
    for owner in owners:
        premises = open_premises(MODEL, data_of(owner.number), TaskKind.FILL_IN)
        model, tokenizer = load_base_model(
            premises.model, device=torch.device("cpu"), dtype=torch.float32
        )
        client_id = str(clients[owner.number].id)
        simulated.append(SimulatedClient(client_id, model, tokenizer, premises.data, 2, 1.0))
    result = simulate(
        PARAMS,
        simulated,
        num_rounds=1,
        training=CONFIG,
        global_rank=federation.global_rank,
        seed=run.seed,
        probes=TEXTS,
    )
    agreed = next(
        state for state in stored_states(platform.home) if any("codes/" in name for name in state)
    )
    compared = [name for name in agreed if name.startswith("codes/")]
    assert len(compared) == 14
    for name in compared:
        torch.testing.assert_close(agreed[name], result.state.tensors[name], atol=1e-3, rtol=0)
