"""Cursors of lists: the last row's id, so that new rows never shift a page."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import Query
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.contracts.common import Page

MAX_JOURNAL_ID = 2**63 - 1

Item = TypeVar("Item")

Limit = Annotated[int, Query(ge=1, le=200, description="items a page")]
Cursor = Annotated[UUID | None, Query(description="`next_cursor` of the page before")]
JournalLimit = Annotated[int, Query(ge=1, le=1000, description="items a page")]
JournalCursor = Annotated[
    int | None,
    Query(ge=1, le=MAX_JOURNAL_ID, description="`next_cursor` of the page before"),
]


def fetch_page(
    session: Session,
    query: Select[*tuple[Any, ...]],
    key: InstrumentedAttribute[Any],
    cursor: UUID | int | None,
    limit: int,
    item: Callable[..., Item],
) -> Page[Item]:
    """One page of a list, newest first.

    Args:
        session: where to read.
        query: what to read; neither ordered nor limited.
        key: a unique column that grows with time.
        cursor: the key of the last row of the page before.
        limit: rows a page.
        item: makes an item from the query's columns.
    """
    query = query.add_columns(key).order_by(key.desc()).limit(limit + 1)
    if cursor is not None:
        query = query.where(key < cursor)
    rows = session.execute(query).all()
    shown = rows[:limit]
    return Page(
        items=[item(*row[:-1]) for row in shown],
        next_cursor=str(shown[-1][-1]) if len(rows) > limit else None,
    )
