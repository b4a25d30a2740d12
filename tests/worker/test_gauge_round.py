"""The round before round 1, in which the clients' models agree on codes, in the life of a run."""

from contextlib import AbstractContextManager
from typing import BinaryIO

import pytest
import torch
from sqlalchemy import select

from backend.barrier import notice_deadline
from backend.contracts.base_models import BaseModelRef
from backend.contracts.datasets import BuiltinDataset
from backend.contracts.enums import EventKind, RoundKind, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import CloseRound, Job, OpenRound, RunClientUpdate
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.training import TrainingConfig
from backend.db.models import Event, Metric, Round, Run
from backend.lifecycle import lock_run
from backend.resumption import resume_run
from tests.worker.test_partial_rounds import begin, rows
from tests.worker.test_rounds import do, drain, make_clients, platform, queue_run, sent, state_of
from worker import artifacts
from worker.federated.base_models import load_base_model
from worker.federated.errors import NonFiniteError
from worker.federated.simulation import SimulatedClient, simulate
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.tasks.loading import load_dataset
from worker.federated.types import ClientPlan, LocalClient
from worker.federated.types import ClientUpdate as Sent
from worker.platform import Platform

__all__ = ["platform", "sent"]  # fixtures

PARAMS = H2TuneParams(gauge="probe", codes="exchange")


def codes_of(platform: Platform, run: Run) -> dict[str, torch.Tensor]:
    assert run.state_sha256 is not None
    state = artifacts.load_state(platform, run.state_sha256)
    return {name: t for name, t in state.tensors.items() if name.startswith("codes/")}


def rounds_of(platform: Platform, run: Run) -> list[Round]:
    with platform.session_factory() as session:
        query = select(Round).where(Round.run_id == run.id).order_by(Round.round_number)
        return list(session.scalars(query))


def no_upload(sha256: str) -> AbstractContextManager[BinaryIO]:
    raise AssertionError(f"nothing was uploaded, {sha256} neither")


def test_a_run_begins_with_it_whatever_arrives_twice(platform: Platform, sent: list[Job]) -> None:
    run_id = queue_run(platform, PARAMS, num_rounds=1)
    drain(platform, [OpenRound(run_id=run_id)], copies=2)
    drain(platform, sent, copies=2, seed=5)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    found = rounds_of(platform, run)
    assert [(r.round_number, r.kind) for r in found] == [
        (0, RoundKind.GAUGE),
        (1, RoundKind.TRAIN),
        (2, RoundKind.DELIVER),
    ]
    assert all(r.status is RoundStatus.CLOSED for r in found)
    assert 0 < found[0].report["agreement_explained"] < 1
    with platform.session_factory() as session:
        said = session.scalars(
            select(Event.message).where(Event.run_id == run_id, Event.round_number == 0)
        ).all()
        names = set(
            session.scalars(
                select(Metric.name).where(Metric.run_id == run_id, Metric.round_number == 0)
            )
        )
    assert "Agreement on common codes opened for 2 clients." in said
    assert "The models of 2 clients agreed on common codes." in said
    assert MetricName.BYTES_UP in names
    assert MetricName.ACCURACY_AFTER_TRAINING not in names
    assert MetricName.CONTRIBUTION not in names  # what is said of updates is said of training


def test_the_codes_are_those_of_a_simulation(platform: Platform, sent: list[Job]) -> None:
    members = make_clients(platform)
    run_id = queue_run(platform, PARAMS, num_rounds=1, clients=members)
    drain(platform, [OpenRound(run_id=run_id)])
    drain(platform, sent)
    run = state_of(platform, run_id)
    simulated = []
    for member in members:
        ref = BaseModelRef.model_validate(member.base_model)
        dataset = BuiltinDataset.model_validate(member.dataset)
        model, tokenizer = load_base_model(ref, device=torch.device("cpu"), dtype=torch.float32)
        data = load_dataset(dataset, member.task, no_upload)
        simulated.append(
            SimulatedClient(str(member.id), model, tokenizer, data, member.lora_rank, 1.0)
        )
    result = simulate(
        PARAMS,
        simulated,
        num_rounds=1,
        training=TrainingConfig(local_steps=1, max_eval_examples=1),
        global_rank=4,
        seed=run.seed,
    )
    codes = codes_of(platform, run)
    assert codes
    for name, tensor in codes.items():
        assert torch.equal(tensor, result.state.tensors[name]), name


def test_who_is_too_late_for_it_is_dropped_and_trains_all_the_same(
    platform: Platform, sent: list[Job]
) -> None:
    """Stragglers carry over in training; what came after the codes were found is of no use."""
    policy = RoundPolicy(min_clients=2, deadline_seconds=30, stragglers="carry_over")
    run_id = begin(platform, PARAMS, policy, num_rounds=1)
    do(platform, OpenRound(run_id=run_id))
    *early, late = sent
    sent.clear()
    for job in early:
        do(platform, job)
    assert not sent  # the third is waited for
    with platform.session_factory() as session:
        (round_,) = session.scalars(select(Round).where(Round.run_id == run_id))
        round_.deadline_at = round_.opened_at
        session.commit()
        lock_run(session, run_id)
        (job,) = notice_deadline(session, round_.id)
        session.commit()
    assert isinstance(job, CloseRound)
    do(platform, job)
    assert isinstance(late, RunClientUpdate)
    do(platform, late)  # nothing is left to do
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    statuses = sorted(row.status for row in rows(platform, run_id, 0).values())
    assert statuses == [UpdateStatus.ACCEPTED, UpdateStatus.ACCEPTED, UpdateStatus.DROPPED]
    trained = rows(platform, run_id, 1)
    assert [row.status for row in trained.values()] == [UpdateStatus.ACCEPTED] * 3
    assert all(row.adapter_sha256 for row in rows(platform, run_id, 2).values())


def test_it_waits_for_no_full_buffer_and_robust_rules_leave_it_alone(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = begin(platform, PARAMS, RoundPolicy(buffer_size=1), num_rounds=1)
    with platform.session_factory() as session:
        strict = Robustness(max_update_norm=1e6, rule="norm_clipping", clip_norm=0.5)
        session.get_one(Run, run_id).robustness = strict.model_dump(mode="json")
        session.commit()
    drain(platform, [OpenRound(run_id=run_id)])
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    found = rounds_of(platform, run)
    assert [row.aggregated_in for row in rows(platform, run_id, 0).values()] == [0, 0, 0]
    assert "num_clipped" not in found[0].report
    assert "num_clipped" in found[1].report


def test_a_run_that_failed_in_it_goes_on_in_it(
    platform: Platform, sent: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = queue_run(platform, PARAMS, num_rounds=1)
    do(platform, OpenRound(run_id=run_id))
    broken = next(iter(rows(platform, run_id, 0)))
    train_client = H2Tune.train_client

    def fail(self: H2Tune, plan: ClientPlan, client: LocalClient) -> Sent:
        if plan.client_id == broken:
            raise NonFiniteError("The base model gives NaN: use another precision.")
        return train_client(self, plan, client)

    with monkeypatch.context() as patch:
        patch.setattr(H2Tune, "train_client", fail)
        drain(platform, sent)
    failed = state_of(platform, run_id)
    assert (failed.status, failed.round_number) == (RunStatus.FAILED, 0)
    assert "The base model gives NaN" in (failed.error or "")
    with platform.session_factory() as session:
        jobs = resume_run(session, run_id, "olga")
        session.commit()
    assert jobs
    drain(platform, jobs)
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    assert [r.round_number for r in rounds_of(platform, run)] == [0, 1, 2]
    with platform.session_factory() as session:
        opened = session.scalars(
            select(Event)
            .where(Event.run_id == run_id, Event.kind == EventKind.ROUND_OPENED)
            .order_by(Event.id)
        ).all()
    assert [event.round_number for event in opened] == [0, 1, 2]
