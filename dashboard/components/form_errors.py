"""What is wrong with a form, before it is sent."""

import streamlit as st
from pydantic import ValidationError

from dashboard.components.formatting import escape


def show_form_errors(error: ValidationError) -> None:
    """One line for each wrong field; what was typed is not repeated, it may be a secret."""
    for item in error.errors(include_url=False, include_input=False):
        st.error(escape(f"{'.'.join(map(str, item['loc']))}: {item['msg']}"))


def validation_errors(error: ValidationError) -> dict[str, str]:
    """What the contract refuses, by the path of the field."""
    return {
        ".".join(str(part) for part in item["loc"]): item["msg"]
        for item in error.errors(include_url=False)
    }
