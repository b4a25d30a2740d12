"""The line between an agent and the API, which loses, repeats and delays calls when told to."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_OF_ONE_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host"})
UPSTREAM_SECONDS = 20.0


class Trouble(StrEnum):
    """What can happen to a call."""

    REQUEST_LOST = "request_lost"  # the API never hears of it
    ANSWER_LOST = "answer_lost"  # the API did it, the agent does not know
    REPEATED = "repeated"  # the API gets it twice
    DELAYED = "delayed"


@dataclass(frozen=True)
class CallTrouble:
    """Trouble for the next call whose path ends in `call`."""

    trouble: Trouble
    call: str
    seconds: float  # of a delay


class BadLine:
    """A proxy on `url`; each trouble that was ordered happens once, to the first call that fits."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url
        self._lock = threading.Lock()
        self._ordered: list[CallTrouble] = []
        self.num_happened = 0
        self.url = ""

    @contextmanager
    def open(self) -> Iterator["BadLine"]:
        """Listens for as long as the context lasts."""
        line = self
        upstream = httpx.Client(base_url=self._api_url, timeout=UPSTREAM_SECONDS)

        class Handler(BaseHTTPRequestHandler):
            def do_any(self) -> None:
                line._pass_on(self, upstream)

            do_GET = do_POST = do_PUT = do_any  # noqa: N815 (names of http.server)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing: lost calls are what this is for."""

        server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, name="bad line", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            upstream.close()

    def order(self, trouble: CallTrouble) -> None:
        with self._lock:
            self._ordered.append(trouble)

    def calm(self) -> None:
        """Forgets what has not happened yet."""
        with self._lock:
            self._ordered.clear()

    def _take(self, path: str) -> CallTrouble | None:
        with self._lock:
            for trouble in self._ordered:
                if path.partition("?")[0].endswith(f"/{trouble.call}"):
                    self._ordered.remove(trouble)
                    self.num_happened += 1
                    return trouble
        return None

    def _pass_on(self, request: BaseHTTPRequestHandler, upstream: httpx.Client) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        ordered = self._take(request.path)
        trouble = None if ordered is None else ordered.trouble
        request.close_connection = True
        if trouble is Trouble.REQUEST_LOST:
            return
        if ordered is not None and trouble is Trouble.DELAYED:
            time.sleep(ordered.seconds)
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _OF_ONE_HOP
        }
        headers["Accept-Encoding"] = "identity"
        try:
            for _ in range(2 if trouble is Trouble.REPEATED else 1):
                answer = upstream.request(
                    request.command, request.path, headers=headers, content=body
                )
        except httpx.TransportError:
            return  # the API is dead: so is this connection
        if trouble is Trouble.ANSWER_LOST:
            return
        request.send_response_only(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in _OF_ONE_HOP:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(answer.content)))
        request.end_headers()
        request.wfile.write(answer.content)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A killed agent leaves broken connections: nothing to say about them."""
