"""Reading and exporting the audit trail."""

import json
from collections.abc import Iterator

from sqlalchemy.orm import Session

from backend.audit_trail import repository
from backend.contracts.audit import AuditEntry, AuditFilter
from backend.contracts.common import Page
from backend.db import models
from backend.db.session import SessionFactory
from backend.web.paging import fetch_page
from backend.web.spreadsheet import csv_lines, safe_text

COLUMNS = tuple(AuditEntry.model_fields)


def list_entries(
    session: Session, wanted: AuditFilter, cursor: int | None, limit: int
) -> Page[AuditEntry]:
    """Entries that fulfil all conditions, newest first."""
    query = repository.query(wanted)
    key = models.AuditEntry.id
    return fetch_page(session, query, key, cursor, limit, AuditEntry.model_validate)


def export_csv(factory: SessionFactory, wanted: AuditFilter) -> Iterator[str]:
    """The same as CSV with a header, oldest first, in pieces; `data` is JSON in its column."""
    yield csv_lines([COLUMNS])
    with factory() as session:
        for row in repository.stream(session, wanted):
            values = AuditEntry.model_validate(row).model_dump(mode="json")
            values["data"] = json.dumps(values["data"], sort_keys=True)
            yield csv_lines([["" if v is None else safe_text(str(v)) for v in values.values()]])
