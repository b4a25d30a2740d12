"""The probe texts of a federation on its page."""

from streamlit.testing.v1 import AppTest

from backend.contracts.enums import Role
from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.probe_sets import encode_probe_set
from backend.contracts.runs import RunCreate
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of
from tests.dashboard.test_pages import button

TEXTS = [f"Sentence number {number}." for number in range(60)]


def upload(app: AppTest, name: str, content: bytes, media_type: str) -> None:
    [uploader] = [item for item in app.get("file_uploader") if item.label == "Texts"]
    uploader.upload(name, content, media_type)
    button(app, "Upload").click().run()
    assert not app.exception


def test_an_operator_uploads_texts_and_goes_back(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    platform.user.role = Role.OPERATOR
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "600 built-in texts, made for the tasks of the members." in text_of(app)
    assert "All clients receive them: they must not be confidential." in text_of(app)
    assert "Yes, use them" not in [item.label for item in app.button]
    assert "Download the texts" not in labels(app)

    upload(app, "probes.TXT", "\n".join(TEXTS).encode(), "text/plain")
    assert platform.probe_sets[federation.id] == TEXTS
    size = len(encode_probe_set(TEXTS)) / 1024
    assert f"60 texts ({size:.1f} KiB), uploaded by admin on " in text_of(app)
    assert "SHA-256 `" in text_of(app)
    [shown] = [frame.value for frame in app.dataframe if "The first texts" in frame.value]
    assert shown["The first texts"].tolist() == TEXTS[:5]
    assert "Download the texts" in labels(app)

    upload(app, "probes.jsonl", encode_probe_set(TEXTS[:55]), "application/x-ndjson")
    assert platform.probe_sets[federation.id] == TEXTS[:55]

    button(app, "Yes, use them").click().run()
    assert federation.id not in platform.probe_sets
    assert "600 built-in texts" in text_of(app)


def test_what_is_wrong_is_said(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    app = open_page(pages.FEDERATION, id=str(federation.id))
    button(app, "Upload").click().run()
    assert "Choose the file first." in text_of(app)
    upload(app, "few.txt", b"One.\nTwo.\n", "text/plain")
    assert "The file has 2 texts, and 50 are the fewest." in text_of(app)
    assert not platform.probe_sets


def test_others_only_look(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    platform.probe_sets[federation.id] = TEXTS
    platform.user.role = Role.VIEWER
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "60 texts" in text_of(app)
    assert "Download the texts" in labels(app)
    assert "Texts" not in [item.label for item in app.get("file_uploader")]
    assert "Yes, use them" not in [item.label for item in app.button]


def test_a_run_tells_with_which_texts_it_was_made(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    run = platform.add_run(federation, RunCreate(strategy=LocalOnlyParams()))
    assert "The built-in texts" in text_of(open_page(pages.RUN, id=str(run.id)))
    run.probe_set_sha256 = "0123456789abcdef" * 4
    assert "SHA-256 `0123456789ab`" in text_of(open_page(pages.RUN, id=str(run.id)))


def labels(app: AppTest) -> list[str]:
    return [item.proto.label for item in app.get("download_button")]
