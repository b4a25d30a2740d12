"""The work of remote clients: leased by their agents, and handed in.

Leases, fencing numbers and the barrier of a round are those of managed clients
(`backend.leases`); this module only checks who asks and what arrives.
"""

from typing import BinaryIO
from uuid import UUID

from sqlalchemy.orm import Session

from backend import leases
from backend.auth.principals import ClientPrincipal
from backend.contracts.agent import (
    LEASE_LOST,
    SHARED_MEDIA_TYPE,
    UPDATE_LATE,
    AgentResult,
    Heartbeat,
    Lease,
    ResultReceipt,
    SecureTask,
    SharedReceipt,
    Work,
)
from backend.contracts.enums import EventKind, Execution, RoundKind, SecureStep, UpdateStatus
from backend.contracts.privacy import PrivacySettings
from backend.contracts.strategies import PARAMS
from backend.contracts.training import TrainingConfig
from backend.errors import ConflictError, ForbiddenError, NotFoundError
from backend.jobs import commit_and_enqueue
from backend.journal import record_event, record_metrics
from backend.leases import Claim, Result
from backend.secure_steps import find_secure
from backend.storage import BlobRef, BlobStore, save_blob
from backend.updates import repository
from backend.updates.receipt import require_signature, require_update
from backend.updates.refusals import invalid
from backend.updates.repository import OwnUpdate
from backend.web.downloads import Download


def lease(session: Session, client: ClientPrincipal, agent: str, lease_seconds: float) -> Lease:
    """The oldest update that waits for this client, claimed for the agent that asks.

    Raises:
        ForbiddenError: the client is a managed one.
    """
    if repository.find_client(session, client.id).execution is not Execution.REMOTE:
        raise ForbiddenError(
            f"Client {client.name} is managed: workers of the platform train for it. To train on "
            "your own machine, register a client with execution `remote`.",
            code="client_is_managed",
        )
    update_id = repository.find_waiting(session, client.id)
    if update_id is None:
        return Lease(work=None)
    claim = leases.claim(session, update_id, f"agent {agent}", lease_seconds)
    if claim is None:  # another agent of the same client was faster
        return Lease(work=None)
    own = require_own(session, client, update_id)
    run = repository.find_run(session, claim.run_id)
    plan = repository.find_plan(session, own)
    return Lease(
        work=Work(
            client_update_id=update_id,
            fence=claim.fence,
            lease_seconds=lease_seconds,
            run_id=run.id,
            round_number=claim.round_number,
            num_rounds=run.num_rounds,
            kind=own.round.kind,
            kept_round_number=repository.find_kept_round(session, own),
            strategy=PARAMS.validate_python(run.strategy),
            training=TrainingConfig.model_validate(run.training),
            privacy=PrivacySettings.model_validate(run.privacy),
            secure=_secure_task(session, own),
            plan_sha256=plan.sha256,
            plan_size_bytes=plan.size_bytes,
        )
    )


def find_plan(session: Session, client: ClientPrincipal, update_id: UUID) -> Download:
    """What the client receives in this round.

    Raises:
        NotFoundError: no such update of this client.
    """
    own = require_own(session, client, update_id)
    blob = repository.find_plan(session, own)
    return Download(
        name=f"plan-{own.round.round_number}.safetensors",
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
        media_type=blob.media_type,
    )


def heartbeat(
    session: Session,
    client: ClientPrincipal,
    update_id: UUID,
    beat: Heartbeat,
    lease_seconds: float,
) -> None:
    """Moves the lease forward and shows how far the client is.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
    """
    own = require_own(session, client, update_id)
    claim = _claim(own, beat.fence)
    if not leases.heartbeat(
        session,
        claim,
        lease_seconds,
        stage=beat.stage,
        step=beat.step,
        num_steps=beat.num_steps,
    ):
        raise _lease_lost(own, beat.fence)
    record_metrics(
        session, claim.run_id, client.id, claim.round_number, beat.values, step=beat.step
    )


def require_held(
    session: Session, client: ClientPrincipal, update_id: UUID, fence: int
) -> OwnUpdate:
    """The update, when this attempt may send its shared matrices now: before they are read.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost, or masks are not agreed on yet.
    """
    own = require_leased(session, client, update_id, fence)
    _require_masks(session, own)
    return own


def require_leased(
    session: Session, client: ClientPrincipal, update_id: UUID, fence: int
) -> OwnUpdate:
    """The update, when this attempt still counts.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
    """
    own = require_own(session, client, update_id)
    if not _is_held(own, fence):
        raise _lease_lost(own, fence)
    return own


def store_shared(
    session: Session,
    store: BlobStore,
    client: ClientPrincipal,
    update_id: UUID,
    fence: int,
    content: BinaryIO,
    size_bytes: int,
) -> SharedReceipt:
    """Stores the shared matrices of an attempt; they count with its result.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
        InvalidError: the bytes are no safetensors container, or this round sends none.
    """
    own = require_own(session, client, update_id)
    require_expected(own)
    require_update(session, own, content, size_bytes)
    content.seek(0)
    ref = save_blob(session, store, content, SHARED_MEDIA_TYPE)
    keep_shared(session, own, fence, ref)
    return SharedReceipt(sha256=ref.sha256, size_bytes=ref.size_bytes)


def require_expected(own: OwnUpdate) -> None:
    """Passes when the round sends shared matrices.

    Raises:
        InvalidError: it is the deliver round.
    """
    if own.round.kind is RoundKind.DELIVER:
        raise invalid("body", "shared_unexpected", "The deliver round sends no shared matrices.")


def keep_shared(session: Session, own: OwnUpdate, fence: int, ref: BlobRef) -> None:
    """Remembers what an attempt sent.

    Raises:
        ConflictError: the lease is lost.
    """
    if not repository.keep_shared(session, own.update.id, fence, ref.sha256):
        raise _lease_lost(own, fence)


def finish(
    session: Session, client: ClientPrincipal, update_id: UUID, result: AgentResult
) -> ResultReceipt:
    """Takes a result in; commits, and then the aggregation leaves if it was the round's last.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost, and the run page shows that the result was refused; or
            masks are not agreed on yet.
        InvalidError: the shared matrices are missing, are not those that were uploaded, or are not
            signed as they must be.
    """
    own = require_own(session, client, update_id)
    fingerprint = None
    if _is_held(own, result.fence):
        _require_masks(session, own)
        _check_shared(own, result.shared_sha256)
        fingerprint = require_signature(session, own, result)
    jobs = leases.accept(
        session,
        _claim(own, result.fence),
        Result(
            metrics=result.metrics,
            shared_sha256=result.shared_sha256,
            signature=result.signature if fingerprint else None,
            key_fingerprint=fingerprint,
        ),
    )
    if jobs is not None:
        commit_and_enqueue(session, *jobs)
        return ResultReceipt(is_repeated=False)
    own = require_own(session, client, update_id)
    if _is_repeated(own, result):
        return ResultReceipt(is_repeated=True)
    if own.update.status is not UpdateStatus.DROPPED:  # that is listed as late
        _record_refusal(session, own, result.fence)
    session.commit()  # the event stays although the request is refused
    raise _lease_lost(own, result.fence)


def fail(
    session: Session, client: ClientPrincipal, update_id: UUID, fence: int, reason: str
) -> None:
    """Ends an attempt that the client cannot do; commits, and then what follows leaves.

    The round goes on without the client if the run's policy allows, else the run fails.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
    """
    own = require_own(session, client, update_id)
    if own.update.status is UpdateStatus.FAILED and own.update.fence == fence:
        return  # told twice
    if not _is_held(own, fence):
        raise _lease_lost(own, fence)
    commit_and_enqueue(session, *leases.fail(session, _claim(own, fence), reason))


def release(session: Session, client: ClientPrincipal, update_id: UUID, fence: int) -> None:
    """Gives an update back, because the agent was told to stop.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
    """
    own = require_own(session, client, update_id)
    if not _is_held(own, fence):
        raise _lease_lost(own, fence)
    leases.release(session, _claim(own, fence))  # no job: the client's agent asks by itself


def require_own(session: Session, client: ClientPrincipal, update_id: UUID) -> OwnUpdate:
    """One update of this client.

    Raises:
        NotFoundError: no such update of this client.
    """
    own = repository.find_own(session, client.id, update_id)
    if own is None:
        raise NotFoundError(f"Client {client.name} has no client update {update_id} to do.")
    return own


def _secure_task(session: Session, own: OwnUpdate) -> SecureTask | None:
    secure = find_secure(session, own.round.id)
    if secure is None:
        return None
    return SecureTask(session=secure.number, threshold=secure.threshold)


def _require_masks(session: Session, own: OwnUpdate) -> None:
    """With secure aggregation nothing is taken before everybody's masks are agreed on.

    So an agent that does not know of it is stopped before its update is read.
    """
    secure = find_secure(session, own.round.id)
    if secure is None or secure.step is SecureStep.INPUTS:
        return
    raise ConflictError(
        f"The session of round {own.round.round_number} is in step {secure.step.value}: an update "
        "is taken in step inputs, masked. If this agent does not take part in the exchanges, it is "
        "older than the platform: install the platform's version.",
        code="secure_wrong_step",
    )


def _claim(own: OwnUpdate, fence: int) -> Claim:
    return Claim(
        client_update_id=own.update.id,
        fence=fence,
        round_id=own.round.id,
        round_number=own.round.round_number,
        run_id=own.round.run_id,
        client_id=own.client.id,
        client_name=own.client.name,
    )


def _is_held(own: OwnUpdate, fence: int) -> bool:
    return own.update.status is UpdateStatus.TRAINING and own.update.fence == fence


def _is_repeated(own: OwnUpdate, result: AgentResult) -> bool:
    return (own.update.status, own.update.fence, own.update.shared_sha256) == (
        UpdateStatus.ACCEPTED,
        result.fence,
        result.shared_sha256,
    )


def _check_shared(own: OwnUpdate, sha256: str | None) -> None:
    if own.round.kind is RoundKind.DELIVER:
        if sha256 is not None:
            raise invalid(
                "shared_sha256", "shared_unexpected", "The deliver round sends no shared matrices."
            )
    elif sha256 is None or sha256 != own.update.shared_sha256:
        raise invalid(
            "shared_sha256",
            "shared_missing",
            f"The result names the shared matrices {sha256 or 'of no hash'}, but this attempt "
            f"uploaded {own.update.shared_sha256 or 'none'}. Upload them with "
            "PUT /api/v1/agent/updates/{id}/shared, then send the result with the hash it gave.",
        )


def _record_refusal(session: Session, own: OwnUpdate, fence: int) -> None:
    """Shows a late result on the run page, once for each attempt that there was."""
    if fence > own.update.fence or repository.is_refusal_known(session, own, fence):
        return
    record_event(
        session,
        own.round.run_id,
        EventKind.UPDATE_REFUSED,
        f"{own.client.name}, round {own.round.round_number}: the result of attempt {fence} came "
        "too late and was refused.",
        client_id=own.client.id,
        round_number=own.round.round_number,
        attempt=fence,
    )


def _lease_lost(own: OwnUpdate, fence: int) -> ConflictError:
    if own.update.status is UpdateStatus.DROPPED:
        return ConflictError(
            f"Round {own.round.round_number} closed without {own.client.name}, which was too late: "
            "its update is not used. Drop it and ask for work again with POST /api/v1/agent/lease.",
            code=UPDATE_LATE,
        )
    return ConflictError(
        f"Attempt {fence} at round {own.round.round_number} counts no more: the update is "
        f"{own.update.status.value} and its newest attempt is {own.update.fence}. Drop it and ask "
        "for work again with POST /api/v1/agent/lease.",
        code=LEASE_LOST,
    )
