"""Asking for the protections of a run, and saying at once what they cost and need."""

from collections.abc import Mapping
from typing import Any

import streamlit as st
from pydantic import ValidationError

from backend.contracts.privacy import (
    DifferentialPrivacy,
    PrivacySettings,
    SecureAggregation,
    platform_refusals,
)
from backend.contracts.strategies import PARAMS
from dashboard.components.formatting import epsilon_text, escape
from dashboard.components.schema_form import schema_form

SECURE_HINT = (
    "A round then needs as many clients to the end as the threshold says. Under *Rounds*, give the "
    "fewest clients and a deadline with `drop`, or one client that leaves ends the run; the "
    "deadline counts for each exchange."
)


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
    values: dict[str, Any] = {}
    with st.expander("Privacy", expanded=bool(errors)):
        if st.toggle(
            "Differential privacy",
            key=f"{key}.differential_privacy",
            help="Every client clips its change of the shared matrices and adds noise before "
            "anything leaves it, so that nobody, the platform included, can tell much about its "
            "data. Costs accuracy, most of all with few clients.",
        ):
            values["differential_privacy"] = _settings_form(
                DifferentialPrivacy, "differential_privacy", key, errors
            )
            _epsilon(num_rounds, values["differential_privacy"])
        if st.toggle(
            "Secure aggregation",
            key=f"{key}.secure_aggregation",
            help="Clients hide their updates behind masks that cancel out in the sum, so that the "
            "platform learns the sum and no single update. For remote clients only, at least "
            "three; costs three exchanges of messages in every round.",
        ):
            values["secure_aggregation"] = _settings_form(
                SecureAggregation, "secure_aggregation", key, errors
            )
            st.caption(SECURE_HINT)
        _refusals(strategy, values)
    return values


def _settings_form(
    model: type[DifferentialPrivacy] | type[SecureAggregation],
    name: str,
    key: str,
    errors: Mapping[str, str],
) -> dict[str, Any]:
    below = f"{name}."
    own = {n.removeprefix(below): message for n, message in errors.items() if below in n}
    values = schema_form(model.model_json_schema(), f"{key}.{name}", own)
    if name in errors:
        st.caption(f":red[:material/error: {escape(errors[name])}]")
    return values


def _epsilon(num_rounds: int, values: dict[str, Any]) -> None:
    """Epsilon of the whole run; silent on wrong values, which their fields explain."""
    try:
        settings = DifferentialPrivacy.model_validate(values)
    except ValidationError:
        return
    epsilon_caption(settings, num_rounds)


def _refusals(strategy: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Why this strategy cannot be protected so; silent on wrong values."""
    try:
        privacy = PrivacySettings.model_validate(values)
        params = PARAMS.validate_python(strategy)
    except ValidationError:
        return
    refusals = platform_refusals(params, privacy)
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
