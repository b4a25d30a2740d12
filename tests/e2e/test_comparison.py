"""A comparison with real workers, from its creation to its exports."""

import csv
import io
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from uuid import UUID

import pytest

from backend.api_client import ApiClient, ApiError
from backend.contracts.base_models import BaseModelRef
from backend.contracts.clients import ClientRegister, EnrolmentKeyCreate
from backend.contracts.comparisons import ArmCreate, Comparison, ComparisonCreate
from backend.contracts.datasets import BUILTIN_TASK_KINDS, BuiltinDataset, BuiltinTaskName
from backend.contracts.enums import RunStatus
from backend.contracts.evidence import Verdict
from backend.contracts.federations import FederationCreate
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams, LocalOnlyParams
from backend.contracts.training import TrainingConfig
from tests.running_platform import RunningPlatform, run_platform

TASK = BuiltinTaskName.STORY_CLASSIFICATION
MODELS = ("tiny_llama", "tiny_gemma")
SHORT = TrainingConfig(local_steps=1, batch_size=2, max_eval_examples=4, answer_loss="labels")
SEEDS = [0, 1]


def create_federation(api: ApiClient) -> UUID:
    key = api.enrolment_keys.create(EnrolmentKeyCreate(label="e2e", max_uses=len(MODELS)))
    clients = [
        api.clients.register(
            ClientRegister(
                enrolment_key=key.secret,
                name=model,
                base_model=BaseModelRef(source="builtin", id=model),
                lora_rank=4,
                task=BUILTIN_TASK_KINDS[TASK],
                dataset=BuiltinDataset(task=TASK, num_train=4, num_validation=2, num_test=4),
            )
        ).client.id
        for model in MODELS
    ]
    federation = FederationCreate(name="compared", global_rank=4, client_ids=clients)
    return api.federations.create(federation).id


def wait_for_end(
    platform: RunningPlatform, api: ApiClient, comparison_id: UUID, seconds: float = 240
) -> Comparison:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        comparison = api.comparisons.get(comparison_id)
        if comparison.status.is_terminal:
            return comparison
        going_on = [
            run for run in api.comparisons.runs(comparison_id) if run.status is RunStatus.RUNNING
        ]
        assert len(going_on) <= 2, "more runs at once than the platform allows"
        time.sleep(0.3)
    raise AssertionError(f"not ended in {seconds} s: {comparison}\n{platform.log()}")


def test_strategies_are_compared_over_seeds(tmp_path: Path) -> None:
    with (
        run_platform(tmp_path / "home", FEDBRAID_SWEEP_INTERVAL_SECONDS="0.3") as platform,
        platform.sign_in() as api,
    ):
        federation_id = create_federation(api)
        request = ComparisonCreate(
            name="Two families",
            arms=[
                ArmCreate(strategy=LocalOnlyParams()),
                ArmCreate(strategy=H2TuneParams()),
                ArmCreate(strategy=FedItParams()),
            ],
            seeds=SEEDS,
            num_rounds=1,
            training=SHORT,
        )
        with pytest.raises(ApiError, match="Arm fedit: Client") as refused:
            api.comparisons.create(federation_id, request)
        assert refused.value.field_errors[0].field == "arms.2.strategy"
        request.arms[2] = ArmCreate(strategy=FedItParams(group_by="architecture"))
        made = api.comparisons.create(federation_id, request)
        api.comparisons.start(made.id)
        ended = wait_for_end(platform, api, made.id)
        results = api.comparisons.results(made.id)
        failures = [run.error for run in results.runs if run.error]
        assert (ended.status, ended.num_runs, failures) == (
            RunStatus.COMPLETED,
            {RunStatus.COMPLETED: 6},
            [],
        ), platform.log()
        rows = list(csv.DictReader(io.StringIO(api.comparisons.results_csv(made.id).decode())))
        assert len(rows) == 3 * len(SEEDS) * len(MODELS)
        delivered = defaultdict(list)
        for row in rows:
            delivered[row["title"]].append(float(row["accuracy_delivered"]))
        assert set(delivered) == {"local_only", "h2tune", "fedit (in groups)"}
        for arm in results.arms:
            assert arm.overall.delivered is not None
            assert arm.overall.delivered.mean == pytest.approx(fmean(delivered[arm.title]))
            assert arm.overall.delivered.n == 2
            assert arm.seconds_train is not None
            assert arm.seconds_train.mean > 0
        local, h2tune, _fedit = results.arms
        assert local.bytes_up is not None
        assert h2tune.bytes_up is not None
        assert local.bytes_up.mean == 0 < h2tune.bytes_up.mean
        assert h2tune.verdict in {Verdict.NO_GAIN, Verdict.UNCONTROLLED_GAIN}
        assert local.is_on_bytes_front
        report = api.comparisons.results_markdown(made.id).decode()
        assert "| fedit (in groups) | 2 |" in report
