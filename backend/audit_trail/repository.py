"""SQL of the audit trail; it is only read here."""

from collections.abc import Iterator

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from backend.contracts.audit import AuditFilter
from backend.db.models import AuditEntry

_ROWS_AT_ONCE = 1000


def query(wanted: AuditFilter) -> Select[AuditEntry]:
    """The entries that fulfil all conditions."""
    found = select(AuditEntry)
    if wanted.actor_name is not None:
        found = found.where(AuditEntry.actor_name == wanted.actor_name)
    if wanted.actor_kind is not None:
        found = found.where(AuditEntry.actor_kind == wanted.actor_kind)
    if wanted.action is not None:
        named = AuditEntry.action
        found = found.where(
            (named if "." in wanted.action else func.split_part(named, ".", 1)) == wanted.action
        )
    if wanted.object_id is not None:
        found = found.where(AuditEntry.object_id == wanted.object_id)
    if wanted.since is not None:
        found = found.where(AuditEntry.created_at >= wanted.since)
    if wanted.until is not None:
        found = found.where(AuditEntry.created_at < wanted.until)
    return found


def stream(session: Session, wanted: AuditFilter) -> Iterator[AuditEntry]:
    """The same, oldest first, in pieces: memory does not grow with their number."""
    found = query(wanted).order_by(AuditEntry.id).execution_options(yield_per=_ROWS_AT_ONCE)
    yield from session.scalars(found)
