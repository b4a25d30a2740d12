"""Bytes that go between this program and the platform's blob store, past the API.

The addresses come from the API, are signed, and need no credential: none is ever sent with them.
Whoever cannot reach the store goes through the API instead, so nothing here is an error.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

logger = logging.getLogger(__name__)


class _WithoutSignatures(logging.Filter):
    """Cuts the query off signed addresses in httpx's log: whoever reads it could use them."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets every record pass."""
        if isinstance(record.args, tuple):
            record.args = tuple(_unsigned(arg) for arg in record.args)
        return True


_without_signatures = _WithoutSignatures()


class DirectStore:
    """The blob store of a platform, as signed addresses show it.

    Args:
        http: any client; only its connections and timeouts are used, never its headers.
        needs_tls: whether to pass by a store without TLS, such as where the API itself has it.
    """

    def __init__(self, http: httpx.Client, *, needs_tls: bool) -> None:
        self._http = http
        self._needs_tls = needs_tls
        logging.getLogger("httpx").addFilter(_without_signatures)  # adding it twice is harmless

    def put(self, url: str, content: bytes, media_type: str) -> bool:
        """Sends the whole; False: it did not arrive."""
        headers = {"Content-Type": media_type}
        if self._is_open_to_all(url):
            _warn("sent", "its address has no TLS")
            return False
        try:
            answer = self._http.send(httpx.Request("PUT", url, content=content, headers=headers))
        except httpx.TransportError as error:
            _warn("sent", type(error).__name__)
            return False
        if not answer.is_success:
            _warn("sent", f"HTTP {answer.status_code}")
        return answer.is_success

    @contextmanager
    def stream(self, url: str, sha256: str) -> Iterator[Iterator[bytes] | None]:
        """The bytes in chunks, verified at their end; None: the store cannot be reached.

        Raises:
            httpx.TransportError: while reading, also where the bytes have another hash.
        """
        if self._is_open_to_all(url):
            _warn("fetched", "its address has no TLS")
            yield None
            return
        try:
            answer = self._http.send(httpx.Request("GET", url), stream=True)
        except httpx.TransportError as error:
            _warn("fetched", type(error).__name__)
            yield None
            return
        try:
            if not answer.is_success:
                _warn("fetched", f"HTTP {answer.status_code}")
            yield _verified(answer, sha256) if answer.is_success else None
        finally:
            answer.close()

    def _is_open_to_all(self, url: str) -> bool:
        return self._needs_tls and httpx.URL(url).scheme != "https"


def _verified(answer: httpx.Response, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for chunk in answer.iter_bytes():
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        raise httpx.RemoteProtocolError(
            f"the blob store gave bytes of SHA-256 {digest.hexdigest()}, not {sha256}"
        )


def _unsigned(arg: object) -> object:
    if isinstance(arg, httpx.URL) and "X-Amz-Signature" in arg.params:
        return arg.copy_with(query=None)
    return arg


def _warn(done: str, reason: str) -> None:
    logger.warning(
        "bytes are %s through the API: its blob store could not be used directly (%s)", done, reason
    )
