"""Uploads and downloads past the API, over real HTTP: uvicorn, moto's S3 and the API client."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import uuid4

import httpx
import pytest
from moto.server import ThreadedMotoServer
from redis import Redis
from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.api_client import ApiClient, ApiError, ApiUnreachableError
from backend.api_client.direct import DirectStore
from backend.auth.service import issue_credential
from backend.contracts.agent import PIECE_BYTES, UploadStart, UploadState
from backend.contracts.enums import EventKind, Execution
from backend.db.models import Client, ClientUpdate, Event
from backend.settings import Settings
from backend.storage import BlobStore, open_blob_store, save_blob
from backend.storage.direct import open_direct_transfers
from tests.backend.rows import OpenRun, add_open_run
from tests.backend.updates.test_resumable import shared
from tests.running_platform import free_port
from tests.serving import serve_api, use_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server."""
    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a blob store in a new bucket."""
    use_s3(monkeypatch, s3)
    name = f"bucket-{uuid4()}"
    httpx.put(f"{s3}/{name}").raise_for_status()
    return f"s3://{name}/prefix"


class Wire(httpx.HTTPTransport):
    """Notes what goes to which port; `cut` ports cannot be reached."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[httpx.Request] = []
        self.cut: set[int | None] = set()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if request.url.port in self.cut:
            raise httpx.ConnectError("cut off")
        return super().handle_request(request)

    def bytes_to(self, port: int | None) -> int:
        lengths = [
            int(request.headers.get("content-length", "0"))
            for request in self.sent
            if request.url.port == port
        ]
        return sum(lengths)


@dataclass(frozen=True)
class Site:
    """A platform on S3, and a remote client of it that leased its update."""

    api: ApiClient
    wire: Wire
    store: BlobStore
    rows: OpenRun
    content: bytes
    s3_port: int | None
    api_port: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def start(self) -> UploadState:
        """Announces the upload, as the agent does, but sends nothing."""
        body = UploadStart(fence=1, sha256=self.sha256, size_bytes=len(self.content))
        return self.api.agent._transport.post(self.path, UploadState, body)

    def complete(self) -> None:
        self.api.agent._transport.call("POST", f"{self.path}/complete?sha256={self.sha256}&fence=1")

    @property
    def path(self) -> str:
        return f"/agent/updates/{self.rows.update_ids[0]}/uploads"


@pytest.fixture
def site(
    settings: Settings, session: Session, broker: Redis, s3: str, bucket: str
) -> Iterator[Site]:
    own = settings.model_copy(update={"blob_url": bucket, "presigned_urls": True})
    with serve_api(own) as port:
        rows = add_open_run(session, execution=Execution.REMOTE)
        credential = issue_credential(session, session.get_one(Client, rows.client_ids[0]))
        store = open_blob_store(bucket)
        plan = save_blob(session, store, b"a plan" * 1000, "application/vnd.safetensors")
        session.get_one(ClientUpdate, rows.update_ids[0]).plan_sha256 = plan.sha256
        session.commit()
        wire = Wire()
        with ApiClient(f"http://127.0.0.1:{port}", credential, transport=wire) as api:
            assert api.agent.lease("here") is not None
            content = shared(PIECE_BYTES + 5000, rows.client_ids[0])
            yield Site(api, wire, store, rows, content, httpx.URL(s3).port, port)


def test_long_shared_matrices_go_past_the_api(
    site: Site, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "httpx")
    update_id = site.rows.update_ids[0]
    receipt = site.api.agent.upload_shared(update_id, 1, site.content)
    assert (receipt.sha256, receipt.size_bytes) == (site.sha256, len(site.content))
    assert site.wire.bytes_to(site.s3_port) == len(site.content)
    assert site.wire.bytes_to(site.api_port) < 1000, "the API saw what announces them only"
    for request in site.wire.sent:
        if request.url.port == site.s3_port:
            assert "authorization" not in request.headers, "the credential stays with the API"
    assert site.store.read(site.sha256) == site.content
    assert session.get_one(ClientUpdate, update_id).shared_sha256 == site.sha256
    assert site.api.agent.upload_shared(update_id, 1, site.content) == receipt
    ours = [record.getMessage() for record in caplog.records if record.name == "httpx"]
    assert any("/incoming/" in line for line in ours)
    assert not any("Signature" in line for line in ours), "an address is as secret as a credential"
    names = [entry.name for page in site.store.objects() for entry in page]
    assert not [name for name in names if name.startswith("incoming")], "nothing lies about"


def test_short_ones_take_one_request_through_the_api(site: Site) -> None:
    site.api.agent.upload_shared(site.rows.update_ids[0], 1, shared(100, site.rows.client_ids[0]))
    assert site.wire.bytes_to(site.s3_port) == 0


def test_a_store_out_of_reach_is_passed_by(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.wire.cut.add(site.s3_port)
    update_id = site.rows.update_ids[0]
    with caplog.at_level(logging.WARNING, "backend.api_client.direct"):
        assert site.api.agent.upload_shared(update_id, 1, site.content).sha256 == site.sha256
        assert b"".join(site.api.agent.stream_plan(update_id)) == b"a plan" * 1000
    assert caplog.text.count("ConnectError") == 2
    assert "Signature" not in caplog.text


def test_a_store_without_tls_is_passed_by_where_the_api_has_it(site: Site) -> None:
    store = DirectStore(httpx.Client(transport=site.wire), needs_tls=True)
    url = f"http://127.0.0.1:{site.s3_port}/bucket/x"
    assert not store.put(url, b"content", "text/plain")
    with store.stream(url, "0" * 64) as chunks:
        assert chunks is None
    assert site.wire.bytes_to(site.s3_port) == 0


def test_what_was_sent_is_measured_and_not_believed(site: Site, session: Session) -> None:
    """Another size, other bytes, no container at all: each refused with its code."""
    direct = site.start().direct
    assert direct is not None
    httpx.put(direct.url, content=site.content[:-1]).raise_for_status()
    with pytest.raises(ApiError, match="announced") as refused:
        site.complete()
    assert (refused.value.status, refused.value.code) == (422, "upload_checksum")
    with pytest.raises(ApiError, match="0 of") as refused:
        site.complete()
    assert refused.value.code == "upload_offset", "what came was forgotten"
    other = site.content[:-1] + bytes([site.content[-1] ^ 1])
    httpx.put(direct.url, content=other).raise_for_status()
    with pytest.raises(ApiError, match=hashlib.sha256(other).hexdigest()) as refused:
        site.complete()
    assert (refused.value.status, refused.value.code) == (422, "upload_checksum")
    with pytest.raises(ApiError) as refused:
        site.api.agent.upload_shared(site.rows.update_ids[0], 1, b"garbage" * PIECE_BYTES)
    assert refused.value.code == "shared_refused"
    event = session.scalars(select(Event).where(Event.kind == EventKind.UPDATE_REFUSED)).one()
    assert event.data["code"] == "shared_refused"
    assert session.get_one(ClientUpdate, site.rows.update_ids[0]).shared_sha256 is None


def test_an_address_counts_for_one_object_and_one_method(site: Site, s3: str) -> None:
    direct = site.start().direct
    assert direct is not None
    assert direct.url.startswith(s3)
    assert "X-Amz-Signature" in direct.url
    query = httpx.URL(direct.url).params
    assert query["X-Amz-Expires"] == "900"
    assert query["X-Amz-SignedHeaders"] == "host"
    assert "/incoming/" in httpx.URL(direct.url).path, "blobs themselves are never written to"


def test_a_plan_comes_from_the_store(site: Site) -> None:
    update_id = site.rows.update_ids[0]
    assert b"".join(site.api.agent.stream_plan(update_id)) == b"a plan" * 1000
    assert site.wire.sent[-1].url.port == site.s3_port
    assert "authorization" not in site.wire.sent[-1].headers


def test_damaged_bytes_are_noticed(site: Site, session: Session) -> None:
    update_id = site.rows.update_ids[0]
    sha256 = session.get_one(ClientUpdate, update_id).plan_sha256
    other = site.store.put(b"a plot" * 1000, "text/plain").sha256
    inside = site.store._store  # type: ignore[attr-defined]
    inside.copy(f"prefix/{other}"[7:9] + "/" + other[2:], f"{sha256[:2]}/{sha256[2:]}")
    with pytest.raises(ApiUnreachableError, match=other):
        list(site.api.agent.stream_plan(update_id))


def test_a_blob_that_is_gone_is_a_problem_of_the_platform(site: Site, session: Session) -> None:
    sha256 = session.get_one(ClientUpdate, site.rows.update_ids[0]).plan_sha256
    site.store.delete(sha256)
    with pytest.raises(ApiError) as missing:
        list(site.api.agent.stream_plan(site.rows.update_ids[0]))
    assert missing.value.code == "blob_missing"


def test_a_public_endpoint_is_what_clients_see(settings: Settings, bucket: str) -> None:
    changes = {"presigned_urls": True, "blob_url": bucket, "presigned_seconds": 60}
    endpoint = {"presigned_endpoint": "https://s3.example.org"}
    direct = open_direct_transfers(settings.model_copy(update=changes | endpoint))
    assert direct is not None
    url = httpx.URL(direct.download_address("0" * 64).url)
    assert (url.scheme, url.host) == ("https", "s3.example.org")
    assert url.path.endswith(f"/prefix/00/{'0' * 62}")
    assert url.params["X-Amz-Expires"] == "60"


def test_a_folder_streams_through_the_api(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_direct_transfers(settings) is None
    assert open_direct_transfers(settings.model_copy(update={"presigned_urls": True})) is None
    assert "no effect" in caplog.text
