"""What the page's address says."""

from uuid import UUID

import streamlit as st


def id_in_address(what: str, back_page: str, back_label: str) -> UUID:
    """The `id` in the address; stops the page with a way back when there is no valid one."""
    text = st.query_params.get("id", "")
    try:
        return UUID(text)
    except ValueError:
        st.warning(f"This address names no {what}.", icon=":material/link_off:")
        st.page_link(back_page, label=back_label, icon=":material/arrow_back:")
        st.stop()
