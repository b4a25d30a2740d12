"""Large bodies on their way in: counted while they arrive, and kept off the memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import BinaryIO, cast

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from backend.errors import TooLargeError, UnsupportedMediaError

MEMORY_BYTES = 2**20  # what is longer waits in a file without a name


@dataclass(frozen=True, slots=True)
class ReceivedBody:
    """A body that has arrived, at its first byte."""

    content: BinaryIO
    size_bytes: int


def require_media_type(request: Request, allowed: tuple[str, ...], remedy: str) -> str:
    """The type that a body declares, without parameters.

    Raises:
        UnsupportedMediaError: it is none of those that are allowed; ends with the remedy.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        raise UnsupportedMediaError(
            f"The Content-Type is {media_type[:100] or 'missing'!r}. {remedy}"
        )
    return media_type


@asynccontextmanager
async def receive(
    request: Request, limit: int, too_large: Callable[[str], TooLargeError]
) -> AsyncIterator[ReceivedBody]:
    """The body of a request, refused by its header or as soon as too many bytes have come.

    Args:
        request: whose body nobody has read.
        limit: most bytes.
        too_large: the error, from how large the body is.
    """
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit:
        raise too_large(f"{length[:20]} bytes")
    with SpooledTemporaryFile(max_size=MEMORY_BYTES) as spool:
        size_bytes = 0
        async for chunk in request.stream():
            size_bytes += len(chunk)
            if size_bytes > limit:
                raise too_large("larger")
            await run_in_threadpool(spool.write, chunk)
        spool.seek(0)
        yield ReceivedBody(cast(BinaryIO, spool), size_bytes)
