"""Bytes that go between a client and S3 without passing through the API.

A client that may send or fetch something gets a signed address, good for a while. What it sends
lies under a temporary name until it is checked: nobody else writes what is stored under a hash.
Only S3 can do this; everything else streams through the API as ever.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from obstore import sign
from obstore.store import S3Store

from backend.errors import InvalidError
from backend.settings import Settings
from backend.storage.blobs import BlobMissingError, BlobRef
from backend.storage.object_store import (
    CHUNK_BYTES,
    INCOMING,
    blob_path,
    naming_errors,
    open_object_store,
)

logger = logging.getLogger(__name__)

MAX_PUT_BYTES = 5 * 2**30
"""S3 takes no more in one request, and copies no more in one."""


class UnexpectedSizeError(InvalidError):
    """Another number of bytes came than was announced."""

    code = "upload_checksum"


@dataclass(frozen=True, slots=True)
class SignedAddress:
    """An address that needs no credential; whoever knows it may use it.

    Attributes:
        url: with the signature; never log it.
        expires_at: it counts until then.
    """

    url: str
    expires_at: datetime


class DirectTransfers:
    """Signs addresses of one S3 store, and takes in what came through them.

    Args:
        inside: the store as this program reaches it.
        outside: the same store as clients reach it; only signs.
        lifetime: how long a signed address counts.
    """

    def __init__(self, inside: S3Store, outside: S3Store, lifetime: timedelta) -> None:
        self._inside = inside
        self._outside = outside
        self._lifetime = lifetime

    def upload_address(self, upload_id: UUID) -> SignedAddress:
        """Where to PUT the bytes of an upload.

        Raises:
            BlobStoreUnavailableError: there are no credentials to sign with.
        """
        with naming_errors(str(upload_id)):
            url = sign(self._outside, "PUT", _incoming(upload_id), self._lifetime)
        return SignedAddress(url, datetime.now(UTC) + self._lifetime)

    def download_address(self, sha256: str) -> SignedAddress:
        """Where to GET a blob, which nobody verifies on the way: compare its hash.

        Raises:
            BlobStoreUnavailableError: there are no credentials to sign with.
        """
        with naming_errors(sha256):
            url = sign(self._outside, "GET", blob_path(sha256), self._lifetime)
        return SignedAddress(url, datetime.now(UTC) + self._lifetime)

    def take_in(self, upload_id: UUID, size_bytes: int, media_type: str) -> BlobRef | None:
        """Makes what was sent a blob, named by the hash of what is there; None: nothing was sent.

        The address still counts while this happens. So the bytes are copied to a name that nobody
        else knows, hashed there, and renamed; memory does not follow their size.

        Args:
            upload_id: of `upload_address`.
            size_bytes: as announced.
            media_type: of the blob.

        Raises:
            UnexpectedSizeError: another number of bytes came; they are forgotten.
            BlobStoreUnavailableError: the store failed; trying again may help.
        """
        sent, checked = _incoming(upload_id), f"{INCOMING}/{uuid4().hex}"
        try:
            with naming_errors(sent):
                self._inside.copy(sent, checked)
        except BlobMissingError:
            return None
        with naming_errors(checked):
            found = self._inside.head(checked)["size"]
            if found != size_bytes:
                self._inside.delete([checked, sent])
                raise UnexpectedSizeError(
                    f"{found} bytes were sent, {size_bytes} were announced. They were forgotten: "
                    "send them again."
                )
            digest = hashlib.sha256()
            for chunk in self._inside.get(checked).stream(min_chunk_size=CHUNK_BYTES):
                digest.update(chunk)
            self._inside.rename(checked, blob_path(digest.hexdigest()))
            self._inside.delete(sent)
        return BlobRef(digest.hexdigest(), found, media_type)


def open_direct_transfers(settings: Settings) -> DirectTransfers | None:
    """Direct transfers as the settings want them; None: everything streams through the API.

    Raises:
        ValueError: the address of the store for clients is wrong.
        BlobStoreUnavailableError: the credentials of the store are incomplete.
    """
    if not settings.presigned_urls or settings.blob_url is None:
        return None
    inside = open_object_store(settings.blob_url)
    if not isinstance(inside, S3Store):
        logger.warning(
            "FEDBRAID_PRESIGNED_URLS has no effect: BLOB_URL is no s3:// address, so blobs stream "
            "through the API"
        )
        return None
    outside: object = inside
    if settings.presigned_endpoint is not None:
        outside = open_object_store(settings.blob_url, endpoint=settings.presigned_endpoint)
    if not isinstance(outside, S3Store):
        raise ValueError(f"BLOB_URL {settings.blob_url!r} is no s3:// address")
    return DirectTransfers(inside, outside, timedelta(seconds=settings.presigned_seconds))


def _incoming(upload_id: UUID) -> str:
    return f"{INCOMING}/{upload_id.hex}"
