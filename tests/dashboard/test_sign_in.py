from streamlit.testing.v1 import AppTest

from dashboard import session
from tests.dashboard.fake_accounts import TICKET
from tests.dashboard.fake_platform import PASSWORD, FakePlatform
from tests.dashboard.reading import Open, text_of


def sign_in(app: AppTest, password: str) -> AppTest:
    app.text_input[0].input("admin")
    app.text_input[1].input(password)
    return app.button[0].click().run()


def test_the_first_page_asks_who_is_there(signed_out: AppTest) -> None:
    assert not signed_out.exception
    assert [item.label for item in signed_out.text_input] == ["User name", "Password"]
    assert "fedbraid up" in text_of(signed_out)


def test_signing_in_opens_the_federations(signed_out: AppTest) -> None:
    app = sign_in(signed_out, PASSWORD)
    assert not app.exception
    assert app.title[0].value == "Federations"
    assert "admin" in app.sidebar.caption[0].value


def test_a_wrong_password_is_a_sentence(signed_out: AppTest) -> None:
    app = sign_in(signed_out, "wrong")
    assert app.error[0].value.replace("\\", "") == "The user name or the password is wrong."
    assert session.TOKEN not in app.session_state


def test_empty_fields_are_not_sent(signed_out: AppTest) -> None:
    app = sign_in(signed_out, "")
    assert app.error[0].value == "Enter a user name and a password."


def test_an_unreachable_platform_says_what_to_do(
    platform: FakePlatform, signed_out: AppTest
) -> None:
    platform.reachable = False
    app = sign_in(signed_out, PASSWORD)
    assert "does not answer" in text_of(app)
    assert "fedbraid up" in text_of(app)


def test_signing_out_ends_the_session_and_forgets_the_token(
    platform: FakePlatform, open_page: Open
) -> None:
    app = open_page()
    next(item for item in app.button if item.label == "Sign out").click().run()
    assert not platform.session_valid
    assert session.TOKEN not in app.session_state
    assert app.info[0].value == "You are signed out."


def test_an_expired_session_leads_back_with_a_sentence(
    platform: FakePlatform, open_page: Open
) -> None:
    app = open_page()
    platform.session_valid = False
    app.run()
    assert not app.exception
    assert app.info[0].value == session.ENDED
    assert session.TOKEN not in app.session_state
    assert app.text_input[0].label == "User name"


def test_a_platform_that_went_away_is_explained_and_the_session_kept(
    platform: FakePlatform, open_page: Open
) -> None:
    app = open_page()
    platform.reachable = False
    app.run()
    assert not app.exception
    assert "does not answer" in text_of(app)
    platform.reachable = True
    next(item for item in app.button if item.label == "Try again").click().run()
    assert app.title[0].value == "Federations"
    assert not app.error


def test_a_sign_in_service_is_offered_where_there_is_one(
    platform: FakePlatform, signed_out: AppTest
) -> None:
    assert not signed_out.get("link_button")
    platform.accounts.sign_in_url = "http://fake.test/api/v1/oidc/sign-in"
    [link] = signed_out.run().get("link_button")
    assert link.proto.url == platform.accounts.sign_in_url


def test_a_ticket_is_redeemed_and_leaves_the_address(signed_out: AppTest) -> None:
    signed_out.query_params["ticket"] = TICKET
    app = signed_out.run()
    assert not app.exception
    assert app.title[0].value == "Federations"
    assert "ticket" not in app.query_params


def test_an_old_ticket_is_a_sentence(signed_out: AppTest) -> None:
    signed_out.query_params["ticket"] = "fbt_old"
    app = signed_out.run()
    assert app.info[0].value == "This sign-in ticket has expired."
    assert "ticket" not in app.query_params
