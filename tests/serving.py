"""The API at a real address in this process, and what a client of an S3 server needs to know."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn

from backend.main import create_app
from backend.settings import Settings
from tests.running_platform import free_port


@contextmanager
def serve_api(settings: Settings) -> Iterator[int]:
    """The port on which uvicorn answers until the end."""
    port = free_port()
    config = uvicorn.Config(create_app(settings), port=port, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.02)
        yield port
    finally:
        server.should_exit = True
        thread.join(40)


def use_s3(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Blob stores opened from now on find this S3 server, with any credential."""
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
