"""What one client update computes from, and the computing itself; no status is changed here."""

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter
from sqlalchemy import select

from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BuiltinDataset, DatasetRef, UploadedDataset
from backend.contracts.enums import RoundKind, UpdateStatus
from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import Robustness
from backend.contracts.strategies import PARAMS
from backend.contracts.training import TrainingConfig
from backend.db.models import Client, ClientUpdate, Round, Run
from backend.leases import Claim, Result
from worker import artifacts
from worker.attempts import ActiveAttempt
from worker.checkpoints import CheckpointFile
from worker.devices import training_device, weights_dtype
from worker.federated import types
from worker.federated.errors import FederatedError
from worker.federated.objectives.loading import load_for_task
from worker.federated.privacy.private import unpredictable_key, with_noise
from worker.federated.robustness.robust_strategy import with_robustness
from worker.federated.strategies.registry import build_strategy
from worker.federated.strategy import Strategy
from worker.federated.tasks.loading import load_dataset, open_pictures
from worker.platform import Platform
from worker.specs import describe_client

_DATASET: TypeAdapter[BuiltinDataset | UploadedDataset] = TypeAdapter(DatasetRef)


def strategy_of(run: Run, kind: RoundKind) -> Strategy:
    """The run's strategy, with noise and robust aggregation where its settings ask for it.

    Robust rules are for what training changes, and do not apply in the round before the first: what
    is sent there is bounded by itself.

    The noise of a managed client comes from the worker's secure source. An attempt that got lost
    may leave a blob with other noise, which nobody but the operator could find, who has the data.
    """
    params = PARAMS.validate_python(run.strategy)
    noise = PrivacySettings.model_validate(run.privacy).differential_privacy
    strategy = with_noise(build_strategy(params), params, noise, unpredictable_key)
    if kind is RoundKind.GAUGE:
        return strategy
    return with_robustness(strategy, params, Robustness.model_validate(run.robustness))


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that one client update computes from."""

    strategy: Strategy
    plan: types.ClientPlan
    client: types.LocalClient


def load_work(
    platform: Platform, claim: Claim, attempt: ActiveAttempt, checkpoint: CheckpointFile
) -> Work:
    """Model, data, plan and private state of a claimed update, ready to train.

    Raises:
        FederatedError: the client has no data set, or something of it cannot be used.
    """
    with platform.session_factory() as session:
        run = session.get_one(Run, claim.run_id)
        row = session.get_one(Client, claim.client_id)
        plan_sha256 = session.get_one(ClientUpdate, claim.client_update_id).plan_sha256
        private_sha256 = session.scalar(
            select(ClientUpdate.private_sha256)
            .join(Round, ClientUpdate.round_id == Round.id)
            .where(
                Round.run_id == run.id,
                Round.kind == RoundKind.TRAIN,
                Round.round_number < claim.round_number,
                ClientUpdate.client_id == claim.client_id,
                ClientUpdate.status == UpdateStatus.ACCEPTED,
            )
            .order_by(Round.round_number.desc())
            .limit(1)
        )
    if plan_sha256 is None:
        raise FederatedError(
            f"The plan of round {claim.round_number} was given up after the run had ended. Start a "
            "new run."
        )
    if row.dataset is None:
        raise FederatedError(f"{row.name} has no data set: upload one, then start a new run.")
    training = TrainingConfig.model_validate(run.training)
    dataset = _DATASET.validate_python(row.dataset)
    open_blob = partial(artifacts.open_dataset, platform)
    data = load_dataset(dataset, row.task, open_blob)
    device = training_device()
    model, objective = load_for_task(
        BaseModelRef.model_validate(row.base_model),
        data,
        training,
        device=device,
        dtype=weights_dtype(training.precision, device),
        image_folder=open_pictures(dataset, open_blob),
    )
    private = artifacts.load_private(platform, private_sha256) if private_sha256 else None
    plan = artifacts.load_plan(platform, plan_sha256)
    return Work(
        strategy=strategy_of(run, plan.kind),
        plan=plan,
        client=types.LocalClient(
            spec=describe_client(row),
            model=model,
            objective=objective,
            data=data,
            training=training,
            private=private,
            on_progress=attempt.report,
            checkpointing=checkpoint.checkpointing(),
        ),
    )


def train(platform: Platform, work: Work) -> Result:
    """A training round; what is shared and what is kept are stored apart."""
    update = work.strategy.train_client(work.plan, work.client)
    return Result(
        metrics=update.metrics,
        shared_sha256=artifacts.save_update(platform, update),
        private_sha256=artifacts.save_private(platform, update.private),
    )


def deliver(platform: Platform, work: Work) -> Result:
    """The deliver round; the adapter is stored."""
    with tempfile.TemporaryDirectory(prefix="fedbraid-") as name:
        folder = Path(name)
        metrics = work.strategy.deliver_client(work.plan, work.client, folder)
        return Result(metrics=metrics, adapter_sha256=artifacts.save_adapter(platform, folder))
