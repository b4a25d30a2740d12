"""Asking what a run does about hostile clients, and saying at once what that takes."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import streamlit as st
from pydantic import ValidationError

from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import Robustness, Rule, robustness_refusals
from backend.contracts.strategies import PARAMS
from dashboard.components.formatting import counted, escape
from dashboard.components.schema_form import schema_form

RULE_TITLES: Mapping[str, str] = {
    "none": "None: trust every client",
    "trimmed_mean": "Trimmed mean",
    "median": "Median",
    "krum": "Krum: the update closest to the others",
    "multi_krum": "Multi-Krum: all but the most distant",
    "norm_clipping": "Norm clipping",
}
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "trimmed_mean": ("trim_share",),
    "krum": ("num_hostile",),
    "multi_krum": ("num_hostile",),
    "norm_clipping": ("clip_norm",),
}
_ENOUGH = 10**9
"""So many updates suffice for any rule: whether they come, the API says when the run is made."""


def robustness_form(
    strategy: Mapping[str, Any],
    privacy: Mapping[str, Any],
    key: str,
    errors: Mapping[str, str],
) -> dict[str, Any]:
    """Show the form and give the values of `Robustness`, not yet validated.

    Args:
        strategy: values of the strategy's form, with its name.
        privacy: values of the privacy form.
        key: prefix of the widgets' keys.
        errors: message by field, such as `rule`.
    """
    with st.expander("Hostile clients", expanded=bool(errors)):
        st.caption(
            "One client that is broken, or wants to do harm, can carry a mean away. A robust rule "
            "withstands some of them, and costs a little of what honest clients know alone."
        )
        wanted = rule_fields(get_args(Rule), f"{key}.robustness", errors)
        _consequences(strategy, privacy, wanted)
    return wanted


def rule_fields(rules: Sequence[str], key: str, errors: Mapping[str, str]) -> dict[str, Any]:
    """Show the choice among some rules, and what the chosen one needs; gives the values.

    Args:
        rules: to choose from.
        key: prefix of the widgets' keys.
        errors: message by field, such as `rule`.
    """
    properties: Mapping[str, Any] = Robustness.model_json_schema()["properties"]
    rule = st.selectbox(
        "Rule",
        rules,
        format_func=lambda name: RULE_TITLES[name],
        key=f"{key}.rule",
        help=properties["rule"]["description"],
    )
    if "rule" in errors:
        st.caption(f":red[:material/error: {escape(errors['rule'])}]")
    shown = {name: properties[name] for name in (*_FIELDS.get(rule, ()), "max_update_norm")}
    return {"rule": rule, **schema_form({"properties": shown}, f"{key}.{rule}", errors)}


def _consequences(
    strategy: Mapping[str, Any], privacy: Mapping[str, Any], values: Mapping[str, Any]
) -> None:
    """How many updates the rule needs, and why it cannot be had; silent on wrong values."""
    try:
        settings = Robustness.model_validate(values)
        params = PARAMS.validate_python(strategy)
        protection = PrivacySettings.model_validate(privacy)
    except ValidationError:
        return
    if settings.fewest_updates > 1:
        st.caption(
            f"Every round needs at least {counted(settings.fewest_updates, 'update')} for this."
        )
    refusals = robustness_refusals(params, settings, _ENOUGH, protection)
    for reason in dict.fromkeys(refusals.values()):
        st.warning(escape(reason), icon=":material/warning:")
