"""The storage of a federation on its page."""

from backend.contracts.enums import Role, RunStatus
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.runs import RunCreate
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of


def test_an_administrator_sets_the_limits(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "3.0 MiB stored; no limit" in text_of(app)
    assert "Ended runs keep everything" in text_of(app)
    values = {"Largest size (MiB)": 2.0, "Days that ended runs keep everything": 30.0}
    for label, value in values.items():
        next(item for item in app.number_input if item.label == label).set_value(value)
    next(item for item in app.button if item.label == "Save").click()
    app.run()
    assert platform.storage.own.quota_bytes == 2 * 2**20
    assert platform.storage.own.retention_days == 30
    assert platform.storage.own.retention_rounds is None
    assert "This federation is full" in text_of(app)
    assert "30 days ago" in text_of(app)


def test_others_only_look(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    platform.user.role = Role.OPERATOR
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "3.0 MiB stored" in text_of(app)
    assert "Largest size (MiB)" not in [item.label for item in app.number_input]


def test_a_federation_is_exported_by_administrators(
    platform: FakePlatform, open_page: Open
) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "Export" in text_of(app)
    [button] = [item for item in app.get("download_button") if "rows" in item.proto.label]
    assert "3.0 MiB" in button.proto.label
    platform.storage.uses[0].size_bytes = 2**30
    app.run()
    assert "too much for a browser" in text_of(app)
    assert f"export-federation {federation.id}" in app.code[-1].value
    platform.user.role = Role.OPERATOR
    assert "Export" not in text_of(open_page(pages.FEDERATION, id=str(federation.id)))


def test_an_archive_is_imported_on_the_page_of_all_federations(
    platform: FakePlatform, open_page: Open
) -> None:
    app = open_page(pages.FEDERATIONS)
    app.get("file_uploader")[0].upload("clinics.zip", b"bytes", "application/zip")
    next(item for item in app.button if item.label == "Import").click()
    app.run()
    assert platform.storage.received == [b"bytes"]
    assert "Three clinics (2) is here, with 3 clients and 2 runs" in text_of(app)
    assert "new credential" in text_of(app)


def test_a_run_tells_what_became_of_it(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    run = platform.add_run(federation, RunCreate(strategy=LocalOnlyParams()), RunStatus.FAILED)
    app = open_page(pages.RUN, id=str(run.id))
    assert "Resume" in [item.label for item in app.button]
    run.copied_from, run.cleared_at = run.id, run.created_at
    app = open_page(pages.RUN, id=str(run.id))
    assert "imported copy" in text_of(app)
    assert "received and sent was given up on" in text_of(app)
    assert "Resume" not in [item.label for item in app.button]
