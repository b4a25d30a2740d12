"""One client's page: what it says, and what may be done with the credential."""

from streamlit.testing.v1 import AppTest

from backend.contracts.enums import Role
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of


def press(app: AppTest, label: str) -> AppTest:
    return next(item for item in app.button if item.label == label).click().run()


def test_a_new_credential_is_shown_once(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north")
    app = open_page(pages.CLIENT, id=str(client.id))
    assert "north" in text_of(app)
    app = press(app, "Yes, make a new one")
    assert "fbc_fresh" in [item.value for item in app.code]
    app = press(app, "I have copied it")
    assert "fbc_fresh" not in [item.value for item in app.code]


def test_a_client_can_be_locked_out(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north")
    app = press(open_page(pages.CLIENT, id=str(client.id)), "Yes, lock it out")
    assert platform.locked_out == {client.id}
    assert "north is locked out" in text_of(app)


def test_viewers_see_no_credential(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north")
    platform.user = platform.user.model_copy(update={"role": Role.VIEWER})
    app = open_page(pages.CLIENT, id=str(client.id))
    assert "Credential" not in text_of(app)
    assert not [item for item in app.button if "Yes" in item.label]


def test_the_list_leads_there(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north")
    app = open_page(pages.CLIENTS)
    next(item for item in app.selectbox if item.label == "One client").set_value(client).run()
    app = press(app, "Open")
    assert not app.exception
    assert "Credential" in text_of(app)


def test_a_pending_client_is_approved(platform: FakePlatform, open_page: Open) -> None:
    client = platform.add_client("north", is_pending=True)
    app = open_page(pages.CLIENT, id=str(client.id))
    assert "waits for approval" in text_of(app)
    app = press(app, "Approve")
    assert not client.is_pending
    assert "waits for approval" not in text_of(app)
