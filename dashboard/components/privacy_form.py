"""Asking for differential privacy, and saying at once what it will cost."""

from collections.abc import Mapping
from typing import Any

import streamlit as st
from pydantic import TypeAdapter, ValidationError

from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings, platform_refusals
from backend.contracts.strategies import Params
from dashboard.components.formatting import epsilon_text, escape
from dashboard.components.schema_form import schema_form

_PARAMS: TypeAdapter[Params] = TypeAdapter(Params)


def privacy_form(
    strategy: Mapping[str, Any], num_rounds: int, key: str, errors: Mapping[str, str]
) -> dict[str, Any]:
    """Show the form and give the values of `PrivacySettings`, not yet validated.

    Args:
        strategy: values of the strategy's form, with its name.
        num_rounds: of the run.
        key: prefix of the widgets' keys.
        errors: message by field, such as `differential_privacy.delta`.
    """
    with st.expander("Privacy", expanded=bool(errors)):
        wanted = st.toggle(
            "Differential privacy",
            key=f"{key}.differential_privacy",
            help="Every client clips its change of the shared matrices and adds noise before "
            "anything leaves it, so that nobody, the platform included, can tell much about its "
            "data. Costs accuracy, most of all with few clients.",
        )
        if not wanted:
            return {}
        below = "differential_privacy."
        values = schema_form(
            DifferentialPrivacy.model_json_schema(),
            f"{key}.differential_privacy",
            {n.removeprefix(below): message for n, message in errors.items() if below in n},
        )
        _consequences(strategy, num_rounds, values)
    return {"differential_privacy": values}


def _consequences(strategy: Mapping[str, Any], num_rounds: int, values: dict[str, Any]) -> None:
    """Epsilon of the whole run, and why this strategy cannot do it; silent on wrong values."""
    try:
        settings = DifferentialPrivacy.model_validate(values)
        params = _PARAMS.validate_python(strategy)
    except ValidationError:
        return
    epsilon_caption(settings, num_rounds)
    refusals = platform_refusals(params, PrivacySettings(differential_privacy=settings))
    for reason in (reason for reasons in refusals.values() for reason in reasons):
        st.warning(escape(reason), icon=":material/warning:")


def epsilon_caption(settings: DifferentialPrivacy, num_rounds: int) -> None:
    """The privacy loss of a whole run in words."""
    rounds = "1 round" if num_rounds == 1 else f"{num_rounds} rounds"
    st.caption(
        f"After {rounds} the privacy loss of every client is at most epsilon = "
        f"{epsilon_text(settings.epsilon_after(num_rounds))} at delta = {settings.delta:g}, "
        "whatever its whole data set were replaced by. Below 1 is strong, above 10 is weak."
    )
