"""What a federation stores, and whether more fits.

A blob belongs to a federation while it refers to it itself, or one of its runs or of its clients'
data sets does, and counts once however often that is. Checks come before bytes are taken and before
a round opens; two that come at the same moment may both pass, so a federation can end a little
above its limit.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, literal, select, union_all
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.contracts.storage import QUOTA_EXCEEDED, BlobUse, StoragePolicy, StoredBytes
from backend.db.models import (
    Blob,
    Client,
    ClientUpdate,
    Federation,
    Membership,
    Round,
    Run,
    Upload,
    UploadPiece,
)
from backend.errors import PlatformError
from backend.settings import Settings

UPDATE_COLUMNS = {
    BlobUse.PLANS: ClientUpdate.plan_sha256,
    BlobUse.UPDATES: ClientUpdate.shared_sha256,
    BlobUse.PRIVATE: ClientUpdate.private_sha256,
    BlobUse.ADAPTERS: ClientUpdate.adapter_sha256,
}


class QuotaExceededError(PlatformError):
    """The federation may not store that much."""

    status = 507
    code = QUOTA_EXCEEDED


def policy_of(federation: Federation, settings: Settings) -> StoragePolicy:
    """What holds for a federation: its own limits, and the platform's where it has none."""
    own_rounds = federation.retention_rounds
    return StoragePolicy(
        quota_bytes=_first(federation.quota_bytes, settings.quota_bytes),
        retention_days=_first(federation.retention_days, settings.retention_days),
        retention_rounds=settings.retention_rounds if own_rounds is None else own_rounds,
    )


def used_bytes(session: Session, federation_id: UUID) -> int:
    """Bytes of all blobs of a federation."""
    hashes = select(_references(federation_id).subquery().c.sha256)
    total = select(func.sum(Blob.size_bytes)).where(Blob.sha256.in_(hashes))
    return int(session.scalar(total) or 0)


def uses_of(session: Session, federation_id: UUID) -> list[StoredBytes]:
    """Blobs and bytes of a federation by kind, the largest first."""
    found = _references(federation_id).subquery()
    distinct = select(found.c.use, found.c.sha256).distinct().subquery()
    size_bytes = func.sum(Blob.size_bytes)
    rows = session.execute(
        select(distinct.c.use, func.count(), size_bytes)
        .join(Blob, Blob.sha256 == distinct.c.sha256)
        .group_by(distinct.c.use)
        .order_by(size_bytes.desc(), distinct.c.use)
    )
    return [
        StoredBytes(use=BlobUse(use), num_blobs=count, size_bytes=int(size))
        for use, count, size in rows
    ]


def require_room(
    session: Session, federation_id: UUID, settings: Settings, size_bytes: int = 0
) -> None:
    """Passes when a federation may store so many bytes more; with 0, when it is not full.

    Raises:
        QuotaExceededError: it may not; says what is used, what the limit is, and what helps.
    """
    federation = session.get_one(Federation, federation_id)
    quota = policy_of(federation, settings).quota_bytes
    if quota is None:
        return
    used = used_bytes(session, federation_id)
    if used < quota and used + size_bytes <= quota:
        return
    more = f"{size_bytes:,} bytes more do not fit" if size_bytes else "it is full"
    raise QuotaExceededError(
        f"Federation {federation.name} stores {used:,} bytes and may store {quota:,}: {more}. Let "
        "an administrator raise its limit or shorten its retention, on the federation's page or "
        "with PATCH /api/v1/federations/{id}/storage; then try again."
    )


def _first(own: float | None, default: float | None) -> float | None:
    return default if own is None else own


def _references(federation_id: UUID) -> Select[str, str | None]:
    """(kind, hash) of every reference of a federation's rows on a blob."""
    of_run = Run.federation_id == federation_id
    updates = [
        _named(use, column)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .where(of_run, column.is_not(None))
        for use, column in UPDATE_COLUMNS.items()
    ]
    pieces = (
        _named(BlobUse.UPLOADS, UploadPiece.sha256)
        .join(Upload, UploadPiece.upload_id == Upload.id)
        .join(ClientUpdate, Upload.client_update_id == ClientUpdate.id)
        .join(Round, ClientUpdate.round_id == Round.id)
        .join(Run, Round.run_id == Run.id)
        .where(of_run)
    )
    probe_sets = [
        _named(BlobUse.PROBE_SETS, Federation.probe_set_sha256).where(
            Federation.id == federation_id, Federation.probe_set_sha256.is_not(None)
        ),
        _named(BlobUse.PROBE_SETS, Run.probe_set_sha256).where(
            of_run, Run.probe_set_sha256.is_not(None)
        ),
    ]
    states = _named(BlobUse.STATES, Run.state_sha256).where(of_run, Run.state_sha256.is_not(None))
    dataset = Client.dataset["sha256"].as_string()
    datasets = (
        _named(BlobUse.DATASETS, dataset)
        .join(Membership, Membership.client_id == Client.id)
        .where(Membership.federation_id == federation_id, dataset.is_not(None))
    )
    everything = union_all(states, *updates, pieces, datasets, *probe_sets).subquery()
    return select(everything.c.use, everything.c.sha256)


def _named(
    use: BlobUse, column: ColumnElement[Any] | InstrumentedAttribute[Any]
) -> Select[str, str | None]:
    return select(literal(use.value).label("use"), column.label("sha256"))
