"""Blobs on their way out: in chunks, in part where asked for, and not at all where known already.

Where the blob store answers by itself, the caller is sent there, unless it says that it cannot go.

The hash of a blob is its entity tag. Unchanging content makes the rules of RFC 9110 short: a tag
either is the hash, or the caller has something else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request, status
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from backend.contracts.common import DIRECT_HEADER
from backend.errors import RangeError
from backend.storage import BlobMissingError, BlobStore
from backend.web.dependencies import Direct, Store

CHUNK_BYTES = 2**18
DOWNLOAD_ANSWERS: dict[int | str, dict[str, Any]] = {
    206: {"description": "The part that `Range: bytes=first-last` asks for."},
    307: {
        "description": "An address of the blob store, for a while and for whoever knows it: GET it "
        "without a credential. Send `FedBraid-Direct: no` to get the bytes from here."
    },
    304: {"description": "`If-None-Match` names the hash: the caller has these bytes."},
    416: {"description": "The part lies behind the end; `Content-Range` gives the size."},
}

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True)
class Download:
    """A stored file that a caller may have."""

    name: str
    size_bytes: int
    sha256: str
    media_type: str


class Sender:
    """Answers one request with a blob."""

    def __init__(self, request: Request, store: Store, direct: Direct) -> None:
        self._headers = request.headers
        self._store: BlobStore = store
        is_refused = self._headers.get(DIRECT_HEADER, "").strip().lower() == "no"
        self._direct = None if is_refused else direct

    def send(self, download: Download) -> Response:
        """The bytes, the part that was asked for, where to get them, or that the caller has them.

        Raises:
            RangeError: the part lies behind the end.
            BlobMissingError: the bytes are gone.
        """
        tag = f'"{download.sha256}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes"}
        if _names(self._headers.get("if-none-match", ""), tag):
            return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
        if self._direct is not None:
            if not self._store.exists(download.sha256):
                raise BlobMissingError(
                    f"Blob {download.sha256} is not in the blob store. Restore it from a backup."
                )
            url = self._direct.download_address(download.sha256).url
            return RedirectResponse(url, status.HTTP_307_TEMPORARY_REDIRECT, headers=headers)
        name = quote(download.name, safe="")
        headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{name}"
        wanted = None
        if self._headers.get("if-range", tag) == tag:
            wanted = _wanted(self._headers.get("range", ""), download.size_bytes)
        if wanted is None:
            stream = self._store.open(download.sha256)
            chunks: Iterator[bytes] = iter(lambda: stream.read(CHUNK_BYTES), b"")
            headers["Content-Length"] = str(download.size_bytes)
            return StreamingResponse(chunks, media_type=download.media_type, headers=headers)
        start, stop = wanted
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{download.size_bytes}"
        headers["Content-Length"] = str(stop - start)
        return StreamingResponse(
            self._store.open_range(download.sha256, start, stop),
            status_code=status.HTTP_206_PARTIAL_CONTENT,
            media_type=download.media_type,
            headers=headers,
        )


BlobSender = Annotated[Sender, Depends()]


def _names(header: str, tag: str) -> bool:
    tags = {part.strip().removeprefix("W/") for part in header.split(",")}
    return tag in tags or "*" in tags


def _wanted(header: str, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one behind the last; None for the whole, also of several or odd ranges."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.group(1, 2) == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(0, size_bytes - int(last)), size_bytes
    else:
        start, stop = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None  # RFC 9110: such a range is no range
    if start >= size_bytes:
        raise RangeError(
            f"Range {header[:60]!r} begins behind the end: there are {size_bytes} bytes. Ask for "
            "a part of these, or without Range.",
            size_bytes=size_bytes,
        )
    return start, stop
