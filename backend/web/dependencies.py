"""What every route may ask for: a session of one transaction, the blob store, the settings."""

from collections.abc import Iterator
from typing import Annotated, cast

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStore, DirectTransfers


def get_session_factory(request: Request) -> SessionFactory:
    """The sessions of this application."""
    return cast(SessionFactory, request.app.state.session_factory)


def get_session(
    factory: Annotated[SessionFactory, Depends(get_session_factory)],
) -> Iterator[Session]:
    """One transaction a request: committed when the route returns, rolled back when it raises."""
    with factory() as session:
        yield session
        session.commit()


def get_blob_store(request: Request) -> BlobStore:
    """The blob store of this application."""
    return cast(BlobStore, request.app.state.blob_store)


def get_direct_transfers(request: Request) -> DirectTransfers | None:
    """Signs addresses of the blob store; None: everything streams through this application."""
    return cast(DirectTransfers | None, request.app.state.direct_transfers)


def get_app_settings(request: Request) -> Settings:
    """The settings with which this application was made."""
    return cast(Settings, request.app.state.settings)


# The function scope ends before the answer leaves: a failed commit cannot follow a 201.
DbSession = Annotated[Session, Depends(get_session, scope="function")]
Sessions = Annotated[SessionFactory, Depends(get_session_factory)]
Store = Annotated[BlobStore, Depends(get_blob_store)]
Direct = Annotated[DirectTransfers | None, Depends(get_direct_transfers)]
AppSettings = Annotated[Settings, Depends(get_app_settings)]
