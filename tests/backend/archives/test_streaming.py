"""Archives over real HTTP and by command, and what they cost in memory."""

import io
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from backend.api_client import ApiClient, ApiError
from backend.archives.exporting import snapshot, stream_archive
from backend.archives.importing import import_archive
from backend.auth.principals import SystemPrincipal
from backend.cli import app
from backend.contracts.enums import Role
from backend.db.models import Federation, Run
from backend.db.session import SessionFactory
from backend.settings import Settings
from backend.storage import BlobStore, save_blob
from tests.backend.archives.test_round_trip import Original, picture
from tests.backend.rows import add_user
from tests.factories import PASSWORD
from tests.factories import add_user as add_person
from tests.serving import serve_api

MEBIBYTE = 2**20
LARGE_MIB = 96
ALLOWED_MIB = 40  # storing a long stream takes some 30, however long it is


@pytest.fixture
def api(settings: Settings, session: Session, blob_store: BlobStore) -> Iterator[ApiClient]:
    """An administrator at a real server."""
    add_person(session, Role.ADMINISTRATOR, "ada")
    with serve_api(settings) as port, ApiClient(f"http://127.0.0.1:{port}") as client:
        client.sign_in("ada", PASSWORD)
        yield client


def test_out_and_in_over_http(
    api: ApiClient,
    session: Session,
    session_factory: SessionFactory,
    blob_store: BlobStore,
    tmp_path: Path,
) -> None:
    original = Original(session, blob_store)
    archive = api.federations.export(original.federation_id, tmp_path / "clinics.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["clinics.zip"]
    with archive.open("rb") as file:
        made = api.federations.import_archive(file)
    assert made.is_copy
    before = picture(session_factory, original.federation_id)
    assert picture(session_factory, made.federation_id)["metrics"] == before["metrics"]
    broken = io.BytesIO(archive.read_bytes()[:-50])
    with pytest.raises(ApiError) as refused:
        api.federations.import_archive(broken)
    assert refused.value.code == "archive_refused"


def test_a_blob_that_is_gone_breaks_the_download_off(
    api: ApiClient, session: Session, blob_store: BlobStore, tmp_path: Path
) -> None:
    original = Original(session, blob_store)
    state = session.get_one(Run, original.rows.run_id).state_sha256
    assert state is not None
    blob_store.delete(state)
    with pytest.raises(Exception, match=r"incomplete|closed"):
        api.federations.export(original.federation_id, tmp_path / "clinics.zip")
    assert not (tmp_path / "clinics.zip").exists(), "half an archive never looks whole"


def test_out_and_in_by_command(
    settings: Settings, session: Session, blob_store: BlobStore, tmp_path: Path
) -> None:
    add_person(session, Role.ADMINISTRATOR, "ada")
    original = Original(session, blob_store)
    target = tmp_path / "clinics.zip"
    out = CliRunner().invoke(
        app, ["export-federation", str(original.federation_id), "--to", str(target)]
    )
    assert out.exit_code == 0, out.output
    assert f"{target.stat().st_size} bytes" in out.output.replace("\n", "")
    refused = CliRunner().invoke(app, ["import-federation", str(target), "--as", "nobody"])
    assert refused.exit_code == 1
    assert "no user 'nobody'" in refused.stderr
    made = CliRunner().invoke(app, ["import-federation", str(target), "--as", "ada"])
    assert made.exit_code == 0, made.output
    assert "a copy with new ids: 2 clients, 2 runs" in made.output
    names = session.scalars(select(Federation.name)).all()
    assert len(names) == 2


def test_memory_does_not_follow_the_size(
    session: Session, session_factory: SessionFactory, blob_store: BlobStore, tmp_path: Path
) -> None:
    original = Original(session, blob_store)
    chunks = (os.urandom(MEBIBYTE) for _ in range(LARGE_MIB))
    large = save_blob(session, blob_store, chunks, "application/octet-stream")
    session.get_one(Run, original.rows.run_id).state_sha256 = large.sha256
    owner = add_user(session)
    session.commit()
    target = tmp_path / "large.zip"
    tracemalloc.start()
    try:
        with snapshot(session_factory, original.federation_id) as taken, target.open("wb") as file:
            file.writelines(stream_archive(taken, blob_store))
        with target.open("rb") as file:
            import_archive(
                session_factory, blob_store, Settings(), file, SystemPrincipal(), owner.id
            )
        peak = tracemalloc.get_traced_memory()[1] / MEBIBYTE
    finally:
        tracemalloc.stop()
    assert target.stat().st_size > LARGE_MIB * MEBIBYTE
    assert peak < ALLOWED_MIB, f"{peak:.0f} MiB for an archive of {LARGE_MIB} MiB"
