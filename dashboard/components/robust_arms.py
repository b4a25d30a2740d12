"""Twins of a comparison's arms under a robust rule, so that its price can be read."""

from collections.abc import Iterable
from typing import get_args

import streamlit as st
from pydantic import ValidationError

from backend.contracts.privacy import PrivacySettings
from backend.contracts.robustness import Robustness, Rule, robustness_refusals
from backend.contracts.strategies import Params
from dashboard.components.comparison_arms import Arm, twins_of
from dashboard.components.form_errors import show_form_errors
from dashboard.components.robustness_form import rule_fields


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
            show_form_errors(error)
            return None


def robust_twins(
    arms: Iterable[Arm], settings: Robustness, num_members: int
) -> tuple[list[Arm], list[str]]:
    """The arms that can have the rule, with it; and why the others cannot.

    Arms whose parameters are no valid strategy are left out; the form tells about those anyway.
    """

    def refused(params: Params, arm: Arm) -> Iterable[str]:
        privacy = PrivacySettings.model_validate(arm.get("privacy", {}))
        return robustness_refusals(params, settings, num_members, privacy).values()

    addition = {"robustness": settings.model_dump(mode="json")}
    return twins_of(arms, settings.rule, addition, refused)
