"""HTTP as every group of endpoints needs it: typed answers, typed errors, bounded retries."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import BinaryIO, TypeVar

import httpx
from pydantic import BaseModel, SecretStr, TypeAdapter, ValidationError

from backend.api_client.direct import DirectStore
from backend.api_client.errors import (
    ApiError,
    ApiUnreachableError,
    UnauthenticatedError,
    UnexpectedAnswerError,
)
from backend.contracts.common import DIRECT_HEADER, Page, Problem

T = TypeVar("T")

PREFIX = "/api/v1"
PAGE_LIMIT = 100  # items asked for per page when a whole list is walked
UNAUTHENTICATED = 401
CHUNK_BYTES = 2**20

Query = Mapping[str, str | int]


class Transport:
    """Sends requests to one API and turns answers into contract models.

    Only GETs are retried, and only when no answer came at all: repeating them changes nothing.

    Args:
        http: a configured `httpx.Client`; its `base_url` is the server's root.
        base_url: as people wrote it, for messages.
        max_retries: further tries of a GET after a connection error, 0 or more.
        backoff_seconds: wait before the first retry; doubles with each.
    """

    def __init__(
        self, http: httpx.Client, base_url: str, max_retries: int, backoff_seconds: float
    ) -> None:
        self.http = http
        self.direct = DirectStore(http, needs_tls=base_url.startswith("https:"))
        self.base_url = base_url
        self.max_retries = max_retries
        self.backoff_seconds = backoff_seconds

    def get(self, path: str, answer: type[T], query: Query | None = None) -> T:
        """GET one `answer`."""
        return self._parse(path, answer, self._get(path, query))

    def walk(self, path: str, item: type[T], query: Query | None = None) -> Iterator[T]:
        """Every item of a paged list, newest first; pages are fetched as they are needed."""
        cursor: str | None = None
        while True:
            page = self.get(
                path,
                Page[item],  # type: ignore[valid-type]
                {"limit": PAGE_LIMIT, **(query or {}), **({"cursor": cursor} if cursor else {})},
            )
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def post(self, path: str, answer: type[T], body: BaseModel | None = None) -> T:
        """POST `body` as JSON and read one `answer`."""
        return self._parse(path, answer, self._send("POST", path, json=_encode(body)))

    def put(self, path: str, answer: type[T], body: BaseModel) -> T:
        """PUT `body` as JSON and read one `answer`."""
        return self._parse(path, answer, self._send("PUT", path, json=_encode(body)))

    def patch(self, path: str, answer: type[T], body: BaseModel) -> T:
        """PATCH with the fields of `body` that were set, and read one `answer`."""
        changes = body.model_dump(mode="json", exclude_unset=True)
        return self._parse(path, answer, self._send("PATCH", path, json=changes))

    def put_bytes(
        self, path: str, answer: type[T], content: bytes | Iterable[bytes], media_type: str
    ) -> T:
        """PUT raw bytes and read one `answer`."""
        headers = {"Content-Type": media_type}
        response = self._send("PUT", path, content=content, headers=headers)
        return self._parse(path, answer, response)

    def post_file(self, path: str, answer: type[T], content: BinaryIO, media_type: str) -> T:
        """POST a file chunk by chunk and read one `answer`, however long that takes to come."""
        usual = self.http.timeout
        response = self._send(
            "POST",
            path,
            content=iter(lambda: content.read(CHUNK_BYTES), b""),
            headers={"Content-Type": media_type},
            timeout=httpx.Timeout(
                connect=usual.connect, read=None, write=usual.write, pool=usual.pool
            ),
        )
        return self._parse(path, answer, response)

    def patch_bytes(
        self, path: str, answer: type[T], content: bytes, headers: Mapping[str, str]
    ) -> T:
        """PATCH raw bytes and read one `answer`."""
        response = self._send("PATCH", path, content=content, headers=headers)
        return self._parse(path, answer, response)

    def call(self, method: str, path: str, body: BaseModel | None = None) -> None:
        """Send a request whose answer does not matter."""
        self._send(method, path, json=_encode(body))

    @contextmanager
    def stream(self, path: str) -> Iterator[Iterator[bytes]]:
        """GET bytes in chunks, without holding all of them.

        Where the API names an address of its blob store, they come from there and are verified; a
        store that cannot be reached from here is passed by.
        """
        try:
            with ExitStack() as stack:
                response = stack.enter_context(self._streamed(path, {}))
                chunks = None
                if response.has_redirect_location:
                    response.close()
                    url, sha256 = response.headers["location"], response.headers["etag"].strip('"')
                    chunks = stack.enter_context(self.direct.stream(url, sha256))
                    if chunks is None:
                        response = stack.enter_context(self._streamed(path, {DIRECT_HEADER: "no"}))
                yield response.iter_bytes() if chunks is None else chunks
        except httpx.TransportError as error:
            raise ApiUnreachableError(self.base_url, _reason(error)) from error

    @contextmanager
    def _streamed(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        with self.http.stream("GET", PREFIX + path, headers=headers) as response:
            if response.is_error:
                response.read()
                raise _api_error(response)
            yield response

    def _get(self, path: str, query: Query | None) -> httpx.Response:
        for attempt in range(self.max_retries):
            try:
                return self._send("GET", path, params=query)
            except ApiUnreachableError:
                time.sleep(self.backoff_seconds * 2**attempt)
        return self._send("GET", path, params=query)

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        json: object | None = None,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> httpx.Response:
        try:
            response = self.http.request(
                method,
                PREFIX + path,
                params=params,
                json=json,
                content=content,
                headers=headers,
                timeout=self.http.timeout if timeout is None else timeout,
            )
        except httpx.TransportError as error:
            raise ApiUnreachableError(self.base_url, _reason(error)) from error
        if response.is_error:
            raise _api_error(response)
        return response

    def _parse(self, path: str, answer: type[T], response: httpx.Response) -> T:
        try:
            return TypeAdapter(answer).validate_json(response.content)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            raise UnexpectedAnswerError(self.base_url, path, f"{where}: {first['msg']}") from error


def _encode(body: BaseModel | None) -> dict[str, object] | None:
    """JSON values of a request; secrets in clear, since the server must read them."""
    if body is None:
        return None
    secrets = {
        name: value.get_secret_value() for name, value in body if isinstance(value, SecretStr)
    }
    return body.model_dump(mode="json") | secrets


def _api_error(response: httpx.Response) -> ApiError:
    """The problem a response states, or one made from its status when a proxy answered."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        problem = Problem(
            title=response.reason_phrase or "Error",
            status=response.status_code,
            code=f"http_{response.status_code}",
            detail=f"HTTP {response.status_code} {response.reason_phrase} "
            f"from {response.request.url}.",
        )
    if problem.status == UNAUTHENTICATED:
        return UnauthenticatedError(problem)
    return ApiError(problem)


def _reason(error: httpx.TransportError) -> str:
    """Why no answer came, in a few words."""
    if isinstance(error, httpx.TimeoutException):
        return "it took too long"
    return str(error) or type(error).__name__
