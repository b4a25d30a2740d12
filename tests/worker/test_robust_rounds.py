"""Robust aggregation, the bound of norms and clients' scores in real rounds of the platform."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import torch
from sqlalchemy import select

from backend.contracts.enums import EventKind, RoundStatus, RunStatus, UpdateStatus
from backend.contracts.jobs import Job, OpenRound
from backend.contracts.metrics import MetricName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.robustness import Robustness
from backend.contracts.round_policy import RoundPolicy
from backend.db.models import ClientUpdate, Event, Metric, Round, Run
from tests.backend.rows import add_clients
from tests.worker.test_rounds import drain, platform, queue_run, sent, state_of
from worker import artifacts
from worker.federated.robustness.attacks import sign_flip
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.types import ClientPlan, LocalClient
from worker.federated.types import ClientUpdate as Sent
from worker.federated.wire import decode_update
from worker.platform import Platform

__all__ = ["platform", "sent"]  # fixtures

PARAMS = H2TuneParams(gauge="none")
SCORES = {
    MetricName.COSINE_TO_MEAN,
    MetricName.CONTRIBUTION,
    MetricName.NORM_SHARE,
    MetricName.SENT_NORM,
    MetricName.OUTLIER_SCORE,
}


@pytest.fixture
def begin(
    platform: Platform, sent: list[Job], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[UUID, UUID]]:
    """Runs one round of three clients, the last of which is hostile; gives the run and it."""

    def do_it(settings: Robustness, **policy: Any) -> tuple[UUID, UUID]:
        with platform.session_factory() as session:
            clients = add_clients(session, 3)
            session.commit()
        hostile = max(client.id for client in clients)
        train_client = H2Tune.train_client

        def attack(self: H2Tune, plan: ClientPlan, client: LocalClient) -> Sent:
            update = train_client(self, plan, client)
            is_hostile = plan.client_id == str(hostile)
            return sign_flip(PARAMS, 100)(plan, update) if is_hostile else update

        monkeypatch.setattr(H2Tune, "train_client", attack)
        run_id = queue_run(platform, PARAMS, 1, clients, local_steps=3)
        with platform.session_factory() as session:
            run = session.get_one(Run, run_id)
            run.robustness = settings.model_dump(mode="json")
            run.round_policy = RoundPolicy(**policy).model_dump(mode="json")
            session.commit()
        drain(platform, [OpenRound(run_id=run_id)])
        drain(platform, sent)
        return run_id, hostile

    return do_it


def metrics_of(platform: Platform, run_id: UUID) -> dict[UUID, dict[MetricName, float]]:
    """What the server measured in round 1, by client."""
    found: dict[UUID, dict[MetricName, float]] = {}
    with platform.session_factory() as session:
        names = SCORES | {MetricName.KEPT_SHARE}
        for row in session.scalars(
            select(Metric).where(Metric.run_id == run_id, Metric.name.in_(names))
        ):
            assert (row.round_number, row.step) == (1, None)
            assert row.client_id is not None
            found.setdefault(row.client_id, {})[row.name] = row.value
    return found


def test_a_robust_rule_keeps_a_hostile_client_out_and_the_scores_show_it(
    platform: Platform, begin: Callable[..., tuple[UUID, UUID]]
) -> None:
    run_id, hostile = begin(Robustness(rule="median"))
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    found = metrics_of(platform, run_id)
    assert len(found) == 3
    for client_id, values in found.items():
        assert values.keys() == SCORES | {MetricName.KEPT_SHARE}
        assert (values[MetricName.OUTLIER_SCORE] > 3.5) == (client_id == hostile)
    with platform.session_factory() as session:
        rows = session.scalars(
            select(ClientUpdate).join(Round).where(Round.run_id == run_id, Round.round_number == 1)
        ).all()
        sent_by = {row.client_id: str(row.shared_sha256) for row in rows}
        plan_sha256 = str(rows[0].plan_sha256)
    started = artifacts.load_plan(platform, plan_sha256).tensors
    ended = artifacts.load_state(platform, str(run.state_sha256)).tensors
    for role in [name for name in started if name.startswith("slots/")]:
        changes = torch.stack(
            [
                decode_update(platform.store.read(sha256)).shared[role.replace("slots", "values")]
                for sha256 in sent_by.values()
            ]
        )
        expected = started[role].flatten() + changes.median(dim=0).values.flatten()
        torch.testing.assert_close(ended[role].flatten(), expected)


def test_without_a_rule_scores_are_measured_and_change_nothing(
    platform: Platform, begin: Callable[..., tuple[UUID, UUID]]
) -> None:
    run_id, hostile = begin(Robustness())
    found = metrics_of(platform, run_id)
    assert {name for values in found.values() for name in values} == SCORES
    assert found[hostile][MetricName.NORM_SHARE] > 0.9


def test_an_update_beyond_the_bound_is_refused_with_a_code_and_the_round_goes_on(
    platform: Platform, begin: Callable[..., tuple[UUID, UUID]]
) -> None:
    run_id, hostile = begin(Robustness(max_update_norm=1.0), min_clients=2)
    assert state_of(platform, run_id).status is RunStatus.COMPLETED
    with platform.session_factory() as session:
        refused = session.scalars(select(Event).where(Event.kind == EventKind.UPDATE_REFUSED)).one()
        assert (refused.run_id, refused.client_id, refused.round_number) == (run_id, hostile, 1)
        assert refused.data == {"code": "update_norm_exceeded"}
        assert "max_update_norm of this run is 1" in refused.message
        update = session.scalars(
            select(ClientUpdate)
            .join(Round)
            .where(
                Round.run_id == run_id,
                Round.round_number == 1,
                ClientUpdate.client_id == hostile,
            )
        ).one()
        assert (update.status, update.aggregated_in) == (UpdateStatus.REFUSED, None)
        round_ = session.scalars(
            select(Round).where(Round.run_id == run_id, Round.round_number == 1)
        ).one()
        assert round_.status is RoundStatus.CLOSED
    found = metrics_of(platform, run_id)
    assert len(found) == 2
    assert hostile not in found


def test_a_rule_with_too_few_updates_ends_the_run_with_a_sentence(
    platform: Platform, begin: Callable[..., tuple[UUID, UUID]]
) -> None:
    run_id, _ = begin(Robustness(rule="median", max_update_norm=1.0), min_clients=2)
    run = state_of(platform, run_id)
    assert run.status is RunStatus.FAILED
    assert "median needs 3 updates in a round, and only 2 can be used" in str(run.error)
