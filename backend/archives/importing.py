"""Making a federation of an archive: everything or nothing.

The archive is verified whole, then its blobs are stored, which is harmless by itself: what no row
refers to goes with the garbage collection. All rows are added in one transaction.

Where no federation, client, comparison or run of the archive is here, ids stay as they were: agents
go on with their folders, and runs that had failed or were under way can be resumed. Else everything
is a copy with new ids. States, plans and updates name the old ones, so runs of a copy cannot be
resumed; they can be looked at, compared and cloned.
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby, islice
from typing import Any, BinaryIO
from uuid import UUID

from sqlalchemy import func, insert, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from backend.archives.identity import Ids, Kept, Renumbered, free_name
from backend.archives.manifest import ArchiveError, blob_entry
from backend.archives.reading import Archive, open_archive
from backend.archives.tables import TABLES, ExportedTable, Row, exported, parents
from backend.audit import record_audit
from backend.auth.principals import Actor
from backend.auth.secrets import hash_secret
from backend.base_models.folders import read_folder
from backend.contracts.archives import ImportedFederation
from backend.contracts.enums import Execution, Role, RunStatus
from backend.contracts.probe_sets import (
    JSON_LINES,
    MAX_BODY_BYTES,
    ProbeSetError,
    parse_probe_set,
)
from backend.db.base import Base
from backend.db.models import EnrolmentKey, Federation, Run, User
from backend.db.session import SessionFactory
from backend.errors import ConflictError, InvalidError
from backend.lifecycle import fail_run
from backend.settings import Settings
from backend.storage import BlobRef, BlobStore, add_blob_row

ROWS_AT_ONCE = 500
_TOLD = ("federations", "clients", "comparisons", "runs")
_UNDER_WAY = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.PAUSED)


def find_owner(session: Session, username: str | None) -> UUID:
    """The user who is said to have made what is imported; None: the first administrator.

    Raises:
        InvalidError: there is no such user.
    """
    query = select(User.id).order_by(User.id).limit(1)
    if username is None:
        found = session.scalar(query.where(User.role == Role.ADMINISTRATOR))
    else:
        found = session.scalar(query.where(User.username == username))
    if found is None:
        raise InvalidError(
            f"There is no {'administrator' if username is None else f'user {username!r}'}. Add one "
            "with `fedbraid user create`."
        )
    return found


def import_archive(
    session_factory: SessionFactory,
    store: BlobStore,
    settings: Settings,
    file: BinaryIO,
    actor: Actor,
    owner_id: UUID,
) -> ImportedFederation:
    """Adds the federation of an archive to this platform.

    Args:
        session_factory: of the platform's database.
        store: of the same platform.
        settings: where base models may lie.
        file: the archive; must allow going back and forth.
        actor: who does it, for the audit trail.
        owner_id: the user who is then said to have made what people make.

    Raises:
        ArchiveError: it is damaged or contradicts itself, or a newer version wrote it.
        InvalidError: a base model lies in a folder that is not allowed here.
        BlobStoreUnavailableError: the store failed; trying again is harmless.
    """
    with open_archive(file) as archive:
        _require_probe_sets(archive)
        blobs = _store_blobs(store, archive)
        with session_factory() as session:
            work = _Import(session, archive, settings, owner_id, _ids(session, archive), blobs)
            for ref in blobs.values():
                add_blob_row(session, store, ref)
            imported = _add_everything(work)
            record_audit(
                session,
                actor,
                "federation.import",
                imported.federation_id,
                name=imported.name,
                is_copy=imported.is_copy,
                written_at=archive.manifest.created_at.isoformat(),
            )
            session.commit()
    return imported


@dataclass(slots=True)
class _Import:
    """What the steps of one import share; `seen` has the old ids that other rows may name."""

    session: Session
    archive: Archive
    settings: Settings
    owner_id: UUID
    ids: Ids
    blobs: Mapping[str, BlobRef]
    key_id: UUID | None = None
    seen: dict[str, set[UUID]] = field(default_factory=dict)


def _store_blobs(store: BlobStore, archive: Archive) -> dict[str, BlobRef]:
    media_types = {row["sha256"]: row["media_type"] for _, row in archive.rows("blobs")}
    hashes = set(archive.blobs())
    if hashes != media_types.keys():
        raise ArchiveError("tables/blobs.jsonl and the blobs of the archive differ.")
    refs = {}
    for sha256, media_type in media_types.items():
        with archive.open_blob(sha256) as content:
            refs[sha256] = store.put(content, media_type)
    return refs


def _require_probe_sets(archive: Archive) -> None:
    """Passes when what rows call probe texts can be read as such."""
    named = {
        row.get("probe_set_sha256")
        for table in ("federations", "runs")
        for _, row in archive.rows(table)
    }
    sizes = {entry.name: entry.size_bytes for entry in archive.manifest.entries}
    for sha256 in sorted(set(archive.blobs()) & named):
        if sizes[blob_entry(sha256)] > MAX_BODY_BYTES:  # it is read as a whole wherever it is used
            raise ArchiveError(
                f"The probe set {sha256} of the archive has {sizes[blob_entry(sha256)]} bytes, and "
                f"{MAX_BODY_BYTES} are the most."
            )
        with archive.open_blob(sha256) as content:
            try:
                parse_probe_set(content, JSON_LINES)
            except ProbeSetError as error:
                raise ArchiveError(f"The probe set {sha256} of the archive: {error}") from error


def _ids(session: Session, archive: Archive) -> Ids:
    told: set[UUID] = set()
    is_known = False
    for name in _TOLD:
        key = Base.metadata.tables[name].c.id
        rows = archive.rows(name)
        while batch := [row["id"] for _, row in islice(rows, ROWS_AT_ONCE)]:
            told.update(batch)
            is_known |= session.scalar(select(key).where(key.in_(batch)).limit(1)) is not None
    return Renumbered(told) if is_known else Kept()


def _add_everything(work: _Import) -> ImportedFederation:
    counts = {}
    try:
        for name in TABLES[:-1]:
            counts[name] = _add_table(work, exported(name))
        work.session.flush()
    except IntegrityError as error:
        raise ArchiveError(
            "The rows of the archive contradict each other or what is here: "
            f"{str(error.orig).splitlines()[0]}. Nothing was imported."
        ) from error
    if counts["federations"] != 1:
        raise ArchiveError(f"The archive holds {counts['federations']} federations, expected is 1.")
    (old_id,) = work.seen["federations"]
    federation = work.session.get_one(Federation, work.ids.of(old_id))
    _end_what_was_under_way(work, federation.id)
    return ImportedFederation(
        federation_id=federation.id,
        name=federation.name,
        is_copy=work.ids.is_copy,
        num_clients=counts["clients"],
        num_runs=counts["runs"],
        num_blobs=len(work.blobs),
        size_bytes=sum(ref.size_bytes for ref in work.blobs.values()),
    )


def _add_table(work: _Import, table: ExportedTable) -> int:
    """Adds the rows of one table; gives their number."""
    num_rows = 0
    rows = _prepared(work, table)
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        for _, alike in groupby(batch, key=tuple):  # a statement has the same fields throughout
            work.session.execute(insert(table.table), list(alike))
        num_rows += len(batch)
    return num_rows


def _prepared(work: _Import, table: ExportedTable) -> Iterator[Row]:
    """Rows as they will be here: checked, with their new ids, names and owners."""
    links = parents(table)
    has_id = "id" in {column.name for column in table.columns}
    seen = work.seen.setdefault(table.name, set())
    taken = _taken_names(work.session, table)
    for where, row in work.archive.rows(table.name):
        _require_links(work, row, links, where)
        if has_id:
            seen.add(row["id"])
        old_id = row.get("id")
        row = _renumbered(work.ids, table, row)
        if taken is not None:
            row["name"] = free_name(row["name"], taken)
            taken.add(row["name"])
        yield row | _given_here(work, table.name, row, old_id)


def _require_links(work: _Import, row: Row, links: Mapping[str, str], where: str) -> None:
    for column, target in links.items():
        value = row.get(column)
        known = work.blobs if target == "blobs" else work.seen[target]
        if value is not None and value not in known:
            raise ArchiveError(f"{where}: {column} is {value}, which the archive does not hold.")
    dataset = row.get("dataset")
    if dataset and dataset.get("sha256", "") not in {"", *work.blobs}:
        raise ArchiveError(f"{where}: dataset names bytes that the archive does not hold.")


def _renumbered(ids: Ids, table: ExportedTable, row: Row) -> Row:
    changed = dict(row)
    for column in table.columns:
        value = row.get(column.name)
        if isinstance(value, UUID):
            changed[column.name] = ids.of(value)
        elif isinstance(column.type, JSONB) and value is not None:
            changed[column.name] = json.loads(ids.in_text(json.dumps(value)))
        elif type(value) is str:  # enums and hashes hold no id
            changed[column.name] = ids.in_text(value)
    return changed


def _given_here(work: _Import, table: str, row: Row, old_id: UUID | None) -> dict[str, Any]:
    """Fields that an archive does not carry, or that are others here."""
    match table:
        case "federations" | "comparisons":
            return {"created_by": work.owner_id}
        case "runs":
            copied = {"copied_from": old_id} if work.ids.is_copy else {}
            return {"created_by": work.owner_id, **copied}
        case "clients":
            if row["base_model"]["source"] == "folder" and row["execution"] is Execution.MANAGED:
                read_folder(row["base_model"]["id"], work.settings.model_folders)
            return {"enrolment_key_id": _key(work)}
        case _:
            return {}


def _key(work: _Import) -> UUID:
    """A key that nobody has and that counts no more: every client came with one."""
    if work.key_id is None:
        key = EnrolmentKey(
            secret_hash=hash_secret(secrets.token_urlsafe(32)),
            label=f"import of {work.archive.manifest.federation}"[:100],
            max_uses=0,
            num_uses=0,
            expires_at=datetime.now(UTC),
            revoked_at=func.now(),
            created_by=work.owner_id,
        )
        work.session.add(key)
        work.session.flush()
        work.key_id = key.id
    return work.key_id


def _taken_names(session: Session, table: ExportedTable) -> set[str] | None:
    """Names that are not free, where names have to differ."""
    if table.name not in {"federations", "clients"}:
        return None
    return set(session.scalars(select(table.table.c.name)))


def _end_what_was_under_way(work: _Import, federation_id: UUID) -> None:
    after = "Clone it to train again." if work.ids.is_copy else "Resume it to go on."
    query = select(Run.id).where(Run.federation_id == federation_id, Run.status.in_(_UNDER_WAY))
    for run_id in work.session.scalars(query.order_by(Run.id)).all():
        if not fail_run(
            work.session, run_id, f"It was under way when its federation was exported. {after}"
        ):
            raise ConflictError(f"Run {run_id} could not be ended. Try again.")
