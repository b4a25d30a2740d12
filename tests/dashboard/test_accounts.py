from datetime import UTC, datetime
from uuid import uuid4

import pytest
from streamlit.testing.v1 import AppTest

from backend.contracts.audit import AuditEntry
from backend.contracts.enums import Role
from backend.contracts.users import User
from dashboard import pages
from dashboard.components.second_factor import qr_code
from tests.dashboard.fake_accounts import CODE, PERSONAL, RECOVERY, SECRET
from tests.dashboard.fake_platform import PASSWORD, FakePlatform
from tests.dashboard.reading import Open, text_of


def press(app: AppTest, label: str) -> AppTest:
    assert label in [item.label for item in app.button], text_of(app)
    return next(item for item in app.button if item.label == label).click().run()


def type_in(app: AppTest, label: str, value: str) -> None:
    next(item for item in app.text_input if item.label == label).input(value)


def codes_on(app: AppTest) -> list[str]:
    return [item.value for item in app.code]


def test_the_form_asks_for_the_second_factor_once_the_api_does(
    platform: FakePlatform, signed_out: AppTest
) -> None:
    platform.user.has_second_factor = True
    type_in(signed_out, "User name", "admin")
    type_in(signed_out, "Password", PASSWORD)
    app = press(signed_out, "Sign in")
    assert [item.label for item in app.text_input] == ["User name", "Password", "Code"]
    assert not app.error
    type_in(app, "Code", "000000")
    app = press(app, "Sign in")
    assert app.error[0].value == "The code is wrong."
    type_in(app, "Code", CODE)
    app = press(app, "Sign in")
    assert app.title[0].value == "Federations"


def test_a_code_that_cannot_be_one_is_not_sent(platform: FakePlatform, signed_out: AppTest) -> None:
    platform.user.has_second_factor = True
    type_in(signed_out, "User name", "admin")
    type_in(signed_out, "Password", PASSWORD)
    app = press(signed_out, "Sign in")
    type_in(app, "Code", "12")
    assert "six digits" in press(app, "Sign in").error[0].value


def test_a_second_factor_is_switched_on_and_off(platform: FakePlatform, open_page: Open) -> None:
    app = press(open_page(pages.ACCOUNT), "Set up a second factor")
    assert SECRET in codes_on(app)
    type_in(app, "Code that the app shows now", "000000")
    app = press(app, "Switch it on")
    assert "The code is wrong." in text_of(app)
    assert "Open sessions" in text_of(app)  # the rest of the page is still there
    type_in(app, "Code that the app shows now", CODE)
    app = press(app, "Switch it on")
    assert "\n".join(RECOVERY) in codes_on(app)
    assert SECRET not in codes_on(app)
    app = press(app, "I have copied them")
    assert not codes_on(app)
    type_in(app, "Code, or a recovery code", CODE)
    app = press(app, "Yes, switch it off")
    assert not platform.user.has_second_factor
    assert "Set up a second factor" in [item.label for item in app.button]


def test_the_qr_code_is_a_picture_of_the_address() -> None:
    first, second = qr_code("otpauth://totp/a?secret=A"), qr_code("otpauth://totp/a?secret=B")
    assert first.startswith("<svg")
    assert first != second
    assert 'fill="#fff"' in first


def test_the_password_is_changed(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.ACCOUNT)
    type_in(app, "Present password", PASSWORD)
    type_in(app, "New password", "battery staple clip")
    type_in(app, "New password again", "battery staple clip")
    assert "is changed" in press(app, "Change it").success[0].value
    assert platform.accounts.passwords == ["battery staple clip"]


@pytest.mark.parametrize(
    ("current", "new", "again", "complaint"),
    [
        (PASSWORD, "battery staple clip", "battery staple clap", "same twice"),
        (PASSWORD, "short", "short", "new_password"),
        ("wrong", "battery staple clip", "battery staple clip", "present password is wrong"),
    ],
)
def test_a_wrong_change_of_the_password_is_a_sentence(
    platform: FakePlatform, open_page: Open, current: str, new: str, again: str, complaint: str
) -> None:
    app = open_page(pages.ACCOUNT)
    type_in(app, "Present password", current)
    type_in(app, "New password", new)
    type_in(app, "New password again", again)
    app = press(app, "Change it")
    assert complaint in text_of(app)
    assert not platform.accounts.passwords


def test_a_personal_token_is_shown_once_and_ended(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.ACCOUNT)
    type_in(app, "Name of the program", "nightly")
    app = press(app, "Make it")
    assert PERSONAL in codes_on(app)
    app = press(app, "I have copied it")
    assert not codes_on(app)
    assert "nightly (read)" in text_of(app)
    app.button(key=f"personal_tokens.end.{platform.accounts.tokens[0].id}").click().run()
    assert not platform.accounts.tokens


def test_another_session_is_ended_but_not_this_one(platform: FakePlatform, open_page: Open) -> None:
    app = open_page(pages.ACCOUNT)
    other = platform.accounts.sessions[1]
    assert [item.label for item in app.button].count("End") == 1
    app = app.button(key=f"account.session.{other.id}").click().run()
    assert [item.is_current for item in platform.accounts.sessions] == [True]
    assert "192.0.2.2" not in text_of(app)


def test_an_administrator_changes_a_user(platform: FakePlatform, open_page: Open) -> None:
    olga = User(
        id=uuid4(), username="olga", role=Role.VIEWER, created_at=datetime.now(UTC),
        has_second_factor=True,
    )  # fmt: skip
    platform.users.append(olga)
    app = open_page(pages.USERS)
    app = app.selectbox(key=f"users.role.{olga.id}").select(Role.OPERATOR).run()
    app = press(app, "Change the role")
    assert olga.role is Role.OPERATOR
    app = press(app, "Reset second factor")
    assert not olga.has_second_factor
    app = press(app, "Disable")
    assert olga.disabled_at is not None
    press(app, "Enable")
    assert olga.disabled_at is None


def test_nobody_changes_the_own_access(open_page: Open) -> None:
    app = open_page(pages.USERS)
    assert "Change the role" not in [item.label for item in app.button]


def test_the_audit_trail_is_filtered(platform: FakePlatform, open_page: Open) -> None:
    platform.accounts.entries = [
        AuditEntry(
            id=1, created_at=datetime.now(UTC), actor_kind="user", actor_id=uuid4(),
            actor_name="admin", action="run.start", object_id=uuid4(), data={"seed": 1},
            address="192.0.2.1",
        )
    ]  # fmt: skip
    app = open_page(pages.AUDIT)
    table = app.dataframe[0].value
    assert list(table["Who"]) == ["admin (user)"]
    assert list(table["What"]) == ['{"seed": 1}']
    type_in(app, "Action", "run")
    app.date_input[1].set_value(datetime(2026, 11, 21).date()).run()
    wanted = platform.accounts.filters[-1]
    assert wanted.action == "run"
    assert wanted.until == datetime(2026, 11, 22, tzinfo=UTC)  # the whole day counts
    type_in(app, "Object", "no id")
    assert "object_id" in text_of(app.run())


def test_a_viewer_finds_no_audit_trail(platform: FakePlatform, open_page: Open) -> None:
    platform.user.role = Role.VIEWER
    app = open_page(pages.ACCOUNT)
    assert app.title[0].value == "Account"
