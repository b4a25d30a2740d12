"""Probe texts of federations: the built-in ones, or those that an operator uploaded."""

from uuid import UUID

from sqlalchemy import func
from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.contracts.common import FieldError
from backend.contracts.probe_sets import (
    JSON_LINES,
    NUM_BUILT_IN,
    NUM_EXAMPLES,
    ProbeSet,
    ProbeSetError,
    ProbeSource,
    decode_probe_set,
    encode_probe_set,
    parse_probe_set,
)
from backend.db import models
from backend.errors import InvalidError, NotFoundError
from backend.federations.service import get_row
from backend.probe_sets.upload import ReceivedTexts
from backend.settings import Settings
from backend.storage import BlobStore, save_blob
from backend.storage.usage import require_room
from backend.web.downloads import Download


def describe(session: Session, store: BlobStore, federation_id: UUID) -> ProbeSet:
    """Where the texts come from, how many there are, and the first ones.

    Raises:
        NotFoundError: no such federation.
    """
    federation = get_row(session, federation_id)
    if federation.probe_set_sha256 is None:
        return ProbeSet(
            source=ProbeSource.BUILT_IN,
            num_texts=NUM_BUILT_IN,
            sha256=None,
            size_bytes=None,
            uploaded_at=None,
            uploaded_by=None,
            examples=[],
        )
    content = store.read(federation.probe_set_sha256)
    texts = decode_probe_set(content)
    user = session.get(models.User, federation.probe_set_by) if federation.probe_set_by else None
    return ProbeSet(
        source=ProbeSource.UPLOADED,
        num_texts=len(texts),
        sha256=federation.probe_set_sha256,
        size_bytes=len(content),
        uploaded_at=federation.probe_set_at,
        uploaded_by=None if user is None else user.username,
        examples=texts[:NUM_EXAMPLES],
    )


def count_texts(store: BlobStore, federation: models.Federation) -> int:
    """How many probe texts a run has that is made now."""
    if federation.probe_set_sha256 is None:
        return NUM_BUILT_IN
    return len(decode_probe_set(store.read(federation.probe_set_sha256)))


def replace(
    session: Session,
    store: BlobStore,
    federation_id: UUID,
    upload: ReceivedTexts,
    settings: Settings,
    actor: UserPrincipal,
) -> ProbeSet:
    """Checks texts and makes them those of the federation; runs that exist keep theirs.

    Raises:
        NotFoundError: no such federation.
        InvalidError: a text is wrong; the message names its line, and the remedy.
        QuotaExceededError: the federation may not store so many bytes more.
    """
    federation = get_row(session, federation_id)
    try:
        texts = parse_probe_set(upload.content, upload.media_type)
    except ProbeSetError as error:
        raise _refused(error) from error
    content = encode_probe_set(texts)
    require_room(session, federation_id, settings, len(content))
    ref = save_blob(session, store, content, JSON_LINES)
    record_audit(
        session,
        actor,
        "federation.probe_set",
        federation_id,
        before=federation.probe_set_sha256,
        after=ref.sha256,
        num_texts=len(texts),
    )
    federation.probe_set_sha256 = ref.sha256
    federation.probe_set_by = actor.id
    federation.probe_set_at = func.now()
    session.flush()
    return describe(session, store, federation_id)


def remove(session: Session, federation_id: UUID, actor: UserPrincipal) -> None:
    """Goes back to the built-in texts; runs that exist keep theirs.

    Raises:
        NotFoundError: no such federation, or it has the built-in texts.
    """
    federation = _with_own(session, federation_id)
    record_audit(
        session,
        actor,
        "federation.probe_set",
        federation_id,
        before=federation.probe_set_sha256,
        after=None,
    )
    federation.probe_set_sha256 = federation.probe_set_at = federation.probe_set_by = None


def find_download(session: Session, federation_id: UUID) -> Download:
    """The uploaded texts as a file.

    Raises:
        NotFoundError: no such federation, or it has the built-in texts.
    """
    federation = _with_own(session, federation_id)
    blob = session.get_one(models.Blob, federation.probe_set_sha256)
    return Download(
        name=f"{federation.name}-probe-set.jsonl",
        size_bytes=blob.size_bytes,
        sha256=blob.sha256,
        media_type=blob.media_type,
    )


def _with_own(session: Session, federation_id: UUID) -> models.Federation:
    federation = get_row(session, federation_id)
    if federation.probe_set_sha256 is None:
        raise NotFoundError(
            f"Federation {federation_id} uses the built-in probe texts, which are made where they "
            "are read. Upload texts of its own with PUT /api/v1/federations/{id}/probe-set.",
            code="probe_set_built_in",
        )
    return federation


def _refused(error: ProbeSetError) -> InvalidError:
    field = "body" if error.line is None else f"line {error.line}"
    return InvalidError(
        str(error),
        code="probe_set_refused",
        errors=[FieldError(field=field, value=error.value, message=str(error))],
    )
