"""The second factor of one's own account: switched on with an app, and off again."""

import segno
import streamlit as st
from pydantic import ValidationError

from backend.api_client.client import ApiClient
from backend.contracts.users import SecondFactorCode, SecondFactorOffer, User
from dashboard import session

OFFER = "second_factor.offer"
FRESH_CODES = "second_factor.fresh_codes"  # recovery codes that are on the screen


def second_factor_section(api: ApiClient, user: User) -> None:
    """What fits the account: offer and confirm, show fresh recovery codes, or remove."""
    st.subheader("Second factor")
    codes: list[str] | None = st.session_state.get(FRESH_CODES)
    offer: SecondFactorOffer | None = st.session_state.get(OFFER)
    if codes is not None:
        _show_codes(codes)
    elif user.has_second_factor:
        _remove(api)
    elif offer is not None:
        _confirm(api, offer)
    else:
        st.caption("With one, signing in needs a code of an authenticator app on your telephone.")
        if st.button("Set up a second factor", icon=":material/lock:"):
            st.session_state[OFFER] = api.account.offer_second_factor()
            st.rerun()


def qr_code(address: str) -> str:
    """An address as QR code: SVG with a white ground, so that a camera reads it on any theme."""
    return str(segno.make_qr(address, error="m").svg_inline(scale=5, border=3, light="#fff"))


def _confirm(api: ApiClient, offer: SecondFactorOffer) -> None:
    with st.container(border=True):
        st.markdown("Scan this with your authenticator app, or type the secret in:")
        st.image(qr_code(offer.uri), width=260)
        st.code(offer.secret, language=None)
        code = _code_form("Code that the app shows now", "Switch it on")
        if code is not None:
            with session.problems_shown():
                st.session_state[FRESH_CODES] = api.account.confirm_second_factor(code).codes
                del st.session_state[OFFER]
                session.refresh_user()
                st.rerun()
        if st.button("Not now"):
            del st.session_state[OFFER]
            st.rerun()


def _show_codes(codes: list[str]) -> None:
    with st.container(border=True):
        st.warning(
            "The second factor is on. These recovery codes are shown now and never again; each "
            "signs you in once when the telephone is lost. Keep them somewhere else.",
            icon=":material/key:",
        )
        st.code("\n".join(codes), language=None)
        if st.button("I have copied them", icon=":material/check:"):
            del st.session_state[FRESH_CODES]
            st.rerun()


def _remove(api: ApiClient) -> None:
    st.caption("Signing in needs a code of your authenticator app.")
    with st.popover("Switch it off", icon=":material/lock_open:"):
        code = _code_form("Code, or a recovery code", "Yes, switch it off")
        if code is not None:
            with session.problems_shown():
                api.account.remove_second_factor(code)
                session.refresh_user()
                st.rerun()


def _code_form(label: str, action: str) -> SecondFactorCode | None:
    """A code that was typed and sent; None: nothing was sent, or no code."""
    with st.form("second_factor"):
        typed = st.text_input(label, autocomplete="one-time-code", max_chars=20)
        sent = st.form_submit_button(action, type="primary")
    if not sent:
        return None
    try:
        return SecondFactorCode(code=typed)
    except ValidationError:
        st.error("A code is six digits, or a recovery code such as `1a2b3c4d-5e6f7a8b`.")
        return None
