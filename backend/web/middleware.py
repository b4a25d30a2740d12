"""What surrounds every request: its id, its log line and metrics, limits, security headers."""

import logging
import re
import time
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.db.ids import new_id
from backend.logging import request_id
from backend.web.problems import problem_response, unexpected
from backend.web.prometheus import RequestMetrics

logger = logging.getLogger("backend.requests")

MAX_BODY_BYTES = 2**20  # of a JSON request; uploads have limits of their own
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
# Answers are data: a browser that is led to show one as a page must load and run nothing.
_DATA_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
# The page that describes the API is Swagger UI, from where FastAPI gets it.
DOCS_PATH = "/docs"
_DOCS_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "img-src data: https://fastapi.tiangolo.com; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class RequestContext:
    """Gives each request an id, answers bugs with 500, logs and counts, adds security headers."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        current = given if _REQUEST_ID.fullmatch(given) else str(new_id())
        mark = request_id.set(current)
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = current
                headers.update(_SECURITY_HEADERS)
                is_docs = scope["path"] == DOCS_PATH
                headers["Content-Security-Policy"] = _DOCS_POLICY if is_docs else _DATA_POLICY
                if scope["path"].startswith("/api/"):
                    headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            logger.exception("unexpected error")
            if status:  # the answer has begun: breaking the connection is all that is left
                raise
            await unexpected()(scope, receive, send_with_headers)
        finally:
            seconds = time.perf_counter() - started
            self._report(scope, status, seconds)
            request_id.reset(mark)

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.observe(scope["method"], route, status, seconds)
        client = scope.get("client")
        logger.info(
            "request",
            extra={
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "seconds": round(seconds, 4),
                "address": client[0] if client else None,
            },
        )


class BodyLimit:
    """Refuses JSON requests above `MAX_BODY_BYTES`, by their header or while they arrive."""

    def __init__(self, app: ASGIApp, exempt_suffixes: tuple[str, ...]) -> None:
        self._app = app
        self._exempt_suffixes = exempt_suffixes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI event stream."""
        if scope["type"] != "http" or scope["path"].endswith(self._exempt_suffixes):
            await self._app(scope, receive, send)
            return
        message = f"The request is larger than the limit of {MAX_BODY_BYTES} bytes."
        with suppress(ValueError):  # a length that is no number is the server's to refuse
            if int(Headers(scope=scope).get("content-length", "0")) > MAX_BODY_BYTES:
                await problem_response(413, "too_large", message)(scope, receive, send)
                return
        received = 0

        async def counted() -> Message:
            nonlocal received
            part = await receive()
            received += len(part.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, message)
            return part

        await self._app(scope, counted, send)
