from backend.contracts.enums import Role
from backend.contracts.federations import Visibility
from dashboard import pages
from tests.dashboard.fake_platform import FakePlatform
from tests.dashboard.reading import Open, text_of


def test_people_are_added_and_removed(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    app = open_page(pages.FEDERATION, id=str(federation.id))
    for name in ("nobody", "olga"):
        next(item for item in app.text_input if item.label == "User name").input(name)
        next(item for item in app.button if item.label == "Add").click()
        app.run()
        assert ("There is no user" in text_of(app)) == (name == "nobody")
    assert "olga (viewer)" in text_of(app)
    [olga] = platform.accounts.members[federation.id]
    app.button(key=f"people.remove.{olga.user_id}").click().run()
    assert "olga" not in text_of(app)


def test_a_federation_is_opened_and_closed(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    app = open_page(pages.FEDERATION, id=str(federation.id))
    for label, expected in (
        ("Close it to all but these users", Visibility.MEMBERS),
        ("Open it to all users", Visibility.PLATFORM),
    ):
        app = next(item for item in app.button if item.label == label).click().run()
        assert federation.visibility is expected


def test_viewers_only_look(platform: FakePlatform, open_page: Open) -> None:
    federation = platform.add_federation("Clinics", [platform.add_client("north")])
    platform.user.role = Role.VIEWER
    app = open_page(pages.FEDERATION, id=str(federation.id))
    assert "People" in text_of(app)
    assert "Add a user" not in [item.label for item in app.get("popover")]
    assert "Open it to all users" not in [item.label for item in app.button]
