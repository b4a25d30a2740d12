"""Runs read the probe texts with which they were made, whatever their federation has later."""

from uuid import UUID

from sqlalchemy import select

from backend.contracts.enums import RoundKind, RunStatus
from backend.contracts.jobs import Job, OpenRound
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.probe_sets import JSON_LINES, encode_probe_set
from backend.db.models import ClientUpdate, Federation, Round, Run
from backend.storage import save_blob
from tests.worker.test_rounds import drain, platform, queue_run, sent, state_of
from worker import artifacts
from worker.federated.probes import unpack_texts
from worker.platform import Platform

__all__ = ["platform", "sent"]  # fixtures

TEXTS = [f"What is {number} plus {number}?" for number in range(60)]
OTHERS = [f"The clinic has {number} beds." for number in range(60)]


def pin(platform: Platform, run_id: UUID, content: bytes) -> None:
    """The run's own texts; its federation has others by now."""
    with platform.session_factory() as session:
        run = session.get_one(Run, run_id)
        ref = save_blob(session, platform.store, content, JSON_LINES)
        run.probe_set_sha256 = ref.sha256
        later = save_blob(session, platform.store, encode_probe_set(OTHERS), JSON_LINES)
        session.get_one(Federation, run.federation_id).probe_set_sha256 = later.sha256
        session.commit()


def test_clients_agree_on_the_texts_of_their_run(platform: Platform, sent: list[Job]) -> None:
    params = H2TuneParams(gauge="probe", codes="exchange")
    run_id = queue_run(platform, params, num_rounds=1)
    pin(platform, run_id, encode_probe_set(TEXTS))
    sent.append(OpenRound(run_id=run_id))
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert (run.status, run.error) == (RunStatus.COMPLETED, None)
    with platform.session_factory() as session:
        rows = session.scalars(
            select(ClientUpdate)
            .join(Round, ClientUpdate.round_id == Round.id)
            .where(Round.run_id == run_id, Round.kind == RoundKind.GAUGE)
        ).all()
    assert len(rows) == 2
    for row in rows:
        assert row.plan_sha256 is not None
        plan = artifacts.load_plan(platform, row.plan_sha256)
        assert unpack_texts(plan.tensors["probes"]) == TEXTS
    assert run.state_sha256 is not None
    state = artifacts.load_state(platform, run.state_sha256)
    codes = [tensor for name, tensor in state.tensors.items() if name.startswith("codes/")]
    assert codes
    assert {tuple(tensor.shape) for tensor in codes} == {(len(TEXTS), 4)}


def test_texts_that_cannot_be_read_end_the_run_with_a_sentence(
    platform: Platform, sent: list[Job]
) -> None:
    run_id = queue_run(platform, H2TuneParams())
    pin(platform, run_id, b"no texts")
    sent.append(OpenRound(run_id=run_id))
    drain(platform, sent)
    run = state_of(platform, run_id)
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert "of the run cannot be read: Line 1: 'no texts' is not valid JSON" in run.error
