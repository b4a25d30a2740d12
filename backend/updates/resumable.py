"""Uploads of shared matrices that go on where a broken connection or a killed agent left them.

An agent announces the hash and size of the whole, then sends pieces in order; each is stored whole
or not at all, as a blob, so that any API process can take the next one. The last step joins the
pieces, and only what has the announced hash counts. Everything may be sent twice.

Where the blob store takes uploads by itself, the announcement also gives an address for the whole;
the last step then takes in what was sent there, after the same checks.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import BinaryIO
from uuid import UUID

from sqlalchemy.orm import Session

from backend.auth.principals import ClientPrincipal
from backend.contracts.agent import (
    PIECE_BYTES,
    PIECE_MEDIA_TYPE,
    SHARED_MEDIA_TYPE,
    UPLOAD_OFFSET,
    DirectUpload,
    SharedReceipt,
    UploadStart,
    UploadState,
)
from backend.db.models import Upload
from backend.errors import ConflictError, NotFoundError, TooLargeError
from backend.settings import Settings
from backend.storage import BlobRef, BlobStore, DirectTransfers, add_blob_row, save_blob
from backend.storage.direct import MAX_PUT_BYTES
from backend.updates import repository, service
from backend.updates.receipt import require_update
from backend.updates.refusals import invalid
from backend.updates.room import require_room_for

CHUNK_BYTES = 2**20


def start(
    session: Session,
    client: ClientPrincipal,
    update_id: UUID,
    request: UploadStart,
    settings: Settings,
    direct: DirectTransfers | None,
) -> UploadState:
    """Announces an upload, or finds how far the same one got.

    Args:
        session: of the request.
        client: who sends it.
        update_id: what it is for.
        request: what is announced.
        settings: with the limits of its size.
        direct: where the blob store takes uploads by itself.

    Raises:
        NotFoundError: no such update of this client.
        ConflictError: the lease is lost.
        InvalidError: this round sends no shared matrices.
        TooLargeError: more than `max_update_bytes`.
        QuotaExceededError: more than the federation may store.
    """
    own = service.require_held(session, client, update_id, request.fence)
    service.require_expected(own)
    max_bytes = settings.max_update_bytes
    if request.size_bytes > max_bytes:
        raise TooLargeError(
            f"size_bytes is {request.size_bytes}, the limit is {max_bytes} bytes. Choose a smaller "
            "LoRA rank, or ask an administrator to raise FEDBRAID_MAX_UPDATE_BYTES."
        )
    if own.update.shared_sha256 == request.sha256:
        return _state(request.sha256, request.size_bytes, request.size_bytes)
    require_room_for(session, own, request.size_bytes, settings)
    upload = repository.begin_upload(session, update_id, request.sha256, request.size_bytes)
    if upload.size_bytes != request.size_bytes:
        raise ConflictError(
            f"size_bytes is {request.size_bytes}, but the upload of {request.sha256} was announced "
            f"with {upload.size_bytes} bytes. Equal hashes have equal sizes: announce that one.",
            code="upload_size",
        )
    offset = repository.upload_offset(session, upload.id)
    state = _state(upload.sha256, upload.size_bytes, offset)
    if direct is not None and upload.size_bytes <= MAX_PUT_BYTES:
        address = direct.upload_address(upload.id)
        state.direct = DirectUpload(url=address.url, expires_at=address.expires_at)
    return state


def add_piece(
    session: Session,
    store: BlobStore,
    client: ClientPrincipal,
    update_id: UUID,
    sha256: str,
    offset: int,
    piece: BinaryIO,
    size_bytes: int,
) -> UploadState:
    """Takes the next piece of an upload; the caller has checked the lease.

    Raises:
        NotFoundError: no such update of this client, or no such upload.
        ConflictError: the piece does not begin where the last one ended.
        TooLargeError: it goes beyond the announced size.
    """
    service.require_own(session, client, update_id)
    upload = _require_upload(session, update_id, sha256)
    known = repository.upload_offset(session, upload.id)  # the upload is locked
    if offset != known:
        raise ConflictError(
            f"Upload-Offset is {offset}, but {known} bytes are here. Go on from {known}.",
            code=UPLOAD_OFFSET,
        )
    if offset + size_bytes > upload.size_bytes:
        raise TooLargeError(
            f"{offset} and {size_bytes} more bytes are above the {upload.size_bytes} announced. "
            "Announce the upload anew with its right size."
        )
    if size_bytes:
        ref = save_blob(session, store, piece, PIECE_MEDIA_TYPE)
        repository.add_piece(session, upload.id, offset, ref)
    return _state(sha256, upload.size_bytes, offset + size_bytes)


def complete(
    session: Session,
    store: BlobStore,
    client: ClientPrincipal,
    update_id: UUID,
    fence: int,
    sha256: str,
    direct: DirectTransfers | None,
) -> SharedReceipt:
    """Takes the whole in, which counts with the result of the attempt from then on.

    Raises:
        NotFoundError: no such update of this client, or no such upload.
        ConflictError: the lease is lost, or pieces are missing.
        InvalidError: the bytes have another hash or are no safetensors container; the upload is
            forgotten then.
    """
    own = service.require_held(session, client, update_id, fence)
    if own.update.shared_sha256 == sha256:
        blob = repository.find_blob(session, sha256)
        return SharedReceipt(sha256=sha256, size_bytes=blob.size_bytes)
    upload = _require_upload(session, update_id, sha256)
    ref = _received(session, store, direct, upload)
    repository.forget_upload(session, upload.id)
    if ref.sha256 != sha256:
        session.commit()
        raise invalid(
            "sha256",
            "upload_checksum",
            f"The {ref.size_bytes} bytes that came have the SHA-256 {ref.sha256}, not the "
            f"announced {sha256}. They were forgotten: send them again.",
        )
    with closing(store.open(sha256)) as content:
        require_update(session, own, content, ref.size_bytes)
    add_blob_row(session, store, ref)
    service.keep_shared(session, own, fence, ref)
    return SharedReceipt(sha256=sha256, size_bytes=ref.size_bytes)


def _received(
    session: Session, store: BlobStore, direct: DirectTransfers | None, upload: Upload
) -> BlobRef:
    """What came, in pieces or directly, as a blob without a row; its hash is that of its bytes.

    Raises:
        ConflictError: not all of it is here.
        InvalidError: the blob store was sent another number of bytes.
    """
    pieces = repository.pieces_of(session, upload.id)
    known = sum(piece.size_bytes for piece in pieces)
    if known == upload.size_bytes:
        return store.put(_joined(store, [piece.sha256 for piece in pieces]), SHARED_MEDIA_TYPE)
    if direct is not None:
        ref = direct.take_in(upload.id, upload.size_bytes, SHARED_MEDIA_TYPE)
        if ref is not None:
            return ref
    raise ConflictError(
        f"{known} of {upload.size_bytes} bytes are here. Send the others first.",
        code=UPLOAD_OFFSET,
    )


def _require_upload(session: Session, update_id: UUID, sha256: str) -> Upload:
    upload = repository.find_upload(session, update_id, sha256)
    if upload is None:
        raise NotFoundError(
            f"There is no upload {sha256} of this update. Announce it with POST "
            "/api/v1/agent/updates/{id}/uploads."
        )
    return upload


def _state(sha256: str, size_bytes: int, offset: int) -> UploadState:
    return UploadState(sha256=sha256, size_bytes=size_bytes, offset=offset, piece_bytes=PIECE_BYTES)


def _joined(store: BlobStore, hashes: list[str]) -> Iterator[bytes]:
    for sha256 in hashes:
        with store.open(sha256) as piece:
            yield from iter(lambda: piece.read(CHUNK_BYTES), b"")
