"""Twins of a comparison's arms under a robust rule, so that its price can be read."""

from collections.abc import Iterable
from typing import get_args

import streamlit as st
from pydantic import TypeAdapter, ValidationError

from backend.contracts.enums import StrategyName
from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import Robustness, Rule, robustness_refusals
from backend.contracts.strategies import Params
from dashboard.components.comparison_arms import Arm
from dashboard.components.formatting import escape
from dashboard.components.robustness_form import rule_fields

_PARAMS: TypeAdapter[Params] = TypeAdapter(Params)


def robust_form(key: str) -> Robustness | None:
    """Ask whether the sharing arms run once more under a robust rule, and under which."""
    with st.expander("Hostile clients"):
        if not st.toggle(
            "Add each sharing arm once more with a robust rule", key=f"{key}.wanted",
            help="Beside the arm that trusts all clients, so that the table says what the rule "
            "costs where nobody is hostile.",
        ):  # fmt: skip
            return None
        rules = [rule for rule in get_args(Rule) if rule != "none"]
        try:
            return Robustness.model_validate(rule_fields(rules, key, {}))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                st.error(escape(f"{'.'.join(map(str, item['loc']))}: {item['msg']}"))
            return None


def robust_twins(
    arms: Iterable[Arm], settings: Robustness, num_members: int
) -> tuple[list[Arm], list[str]]:
    """The arms that can have the rule, with it; and why the others cannot.

    Arms whose parameters are no valid strategy are left out; the form tells about those anyway.
    """
    twins: list[Arm] = []
    reasons: list[str] = []
    for arm in arms:
        if arm["strategy"]["name"] == StrategyName.LOCAL_ONLY:
            continue
        try:
            params = _PARAMS.validate_python(arm["strategy"])
            privacy = PrivacySettings.model_validate(arm.get("privacy", {}))
        except ValidationError:
            continue
        refused = robustness_refusals(params, settings, num_members, privacy)
        if refused:
            reasons += refused.values()
        else:
            label = "_".join(filter(None, (arm.get("label"), settings.rule)))
            twins.append(arm | {"label": label, "robustness": settings.model_dump(mode="json")})
    return twins, list(dict.fromkeys(reasons))
