"""The settings of a comparison: arms, seeds, controls, rounds and local training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
from pydantic import ValidationError

from backend.contracts.clients import Client
from backend.contracts.comparisons import ComparisonCreate
from backend.contracts.compatibility import participant_of, refusals
from backend.contracts.enums import StrategyName
from backend.contracts.strategies import StrategyInfo
from backend.contracts.training import TrainingConfig
from dashboard.components.comparison_arms import (
    local_arms,
    protected,
    protection_form,
    variants_form,
)
from dashboard.components.form_errors import validation_errors
from dashboard.components.formatting import counted, escape
from dashboard.components.robust_arms import robust_form, robust_twins
from dashboard.components.run_form import errors_below
from dashboard.components.schema_form import schema_form

KEY = "comparison"
DEFAULTS = (StrategyName.H2TUNE, StrategyName.LOCAL_ONLY)
_SEPARATORS = re.compile(r"[\s,;]+")


@dataclass(frozen=True, slots=True)
class Draft:
    """What the form says; `request` is None while it is no valid comparison."""

    request: ComparisonCreate | None
    errors: dict[str, str]
    refusals: list[str]


def comparison_form(
    strategies: Sequence[StrategyInfo], clients: Sequence[Client], errors: Mapping[str, str]
) -> Draft:
    """Show the form and what stands against it.

    Args:
        strategies: of the catalogue.
        clients: the federation's members.
        errors: message by path of the field, as the API refused them.
    """
    name = st.text_input("Name", "Comparison", key=f"{KEY}.name", max_chars=100)
    chosen = st.multiselect(
        "Strategies", strategies, key=f"{KEY}.strategies",
        default=[info for info in strategies if info.name in DEFAULTS],
        format_func=lambda info: info.title,
    )  # fmt: skip
    left, middle, right = st.columns([2, 1, 2], vertical_alignment="bottom")
    seeds = left.text_input(
        "Seeds", "0, 1, 2", key=f"{KEY}.seeds",
        help="Each strategy runs once with each seed. One shows no spread; five or more give "
        "intervals that are worth reading.",
    )  # fmt: skip
    num_rounds = middle.number_input("Rounds", 1, 10_000, 5, key=f"{KEY}.num_rounds")
    with right:
        controls = st.toggle(
            "Add local-only and negative controls", value=True, key=f"{KEY}.controls",
            help="A gain over local training may come from mere shrinking. It is called transfer "
            "only if it is lost when the shared matrices are permuted. Every local-only arm is "
            "also there stopped early, at its lowest validation loss.",
        )  # fmt: skip
        grouping = st.toggle(
            "Share inside groups where needed", value=True, key=f"{KEY}.grouping",
            help="Strategies that need equal models run inside groups of equal architecture, and "
            "every table says so.",
        )  # fmt: skip
        tuned = st.toggle(
            "Local baseline at several learning rates", value=False, key=f"{KEY}.tuned",
            help="Adds local-only arms at 3e-4, 1e-3 and 3e-3. Verdicts use the best of them, so "
            "that no gain comes from a baseline that was tuned worse.",
        )  # fmt: skip
    arms = [
        arm
        for info in chosen
        for arm in variants_form(info, clients, f"{KEY}.{info.name}", grouping=grouping)
    ]
    training_errors = errors_below("training", None, errors)
    with st.expander("Local training, the same for all", expanded=bool(training_errors)):
        training = schema_form(TrainingConfig.model_json_schema(), f"{KEY}.training",
                               training_errors)  # fmt: skip
    if tuned:
        local = local_arms(training["learning_rate"])
        arms = [arm for arm in arms if arm["strategy"] != local[0]["strategy"]] + local
    plain = list(arms)
    robustness = robust_form(f"{KEY}.robustness")
    if robustness is not None:
        twins, reasons = robust_twins(plain, robustness, len(clients))
        arms += twins
        for reason in reasons:
            st.caption(f":material/info: Without a robust rule only: {escape(reason)}")
    privacy = protection_form(num_rounds, f"{KEY}.privacy")
    if privacy is not None:
        twins, reasons = protected(plain, privacy)
        arms += twins
        for reason in reasons:
            st.caption(f":material/info: Without protection only: {escape(reason)}")
    return _draft(
        {
            "name": name,
            "arms": arms,
            "seeds": [part for part in _SEPARATORS.split(seeds.strip()) if part],
            "num_rounds": num_rounds,
            "controls": controls,
            "training": training,
        },
        clients,
    )


def show_draft(draft: Draft) -> None:
    """What would run, or what stands against it."""
    for path, message in draft.errors.items():
        st.error(escape(f"{path}: {message}" if path else message))
    for refusal in draft.refusals:
        st.warning(escape(refusal), icon=":material/warning:")
    if draft.request is not None:
        arms = [arm.name for arm in draft.request.all_arms()]
        seeds = len(draft.request.seeds)
        st.caption(
            escape(
                f"{counted(len(arms), 'arm')} times {counted(seeds, 'seed')}: "
                f"{counted(len(arms) * seeds, 'run')}, a few at once ({', '.join(arms)})"
            )
        )


def _draft(values: Mapping[str, Any], clients: Sequence[Client]) -> Draft:
    try:
        request = ComparisonCreate.model_validate(values)
    except ValidationError as error:
        return Draft(None, validation_errors(error), [])
    members = [participant_of(client) for client in clients]
    refused = [
        f"{arm.name}: {refusal.reason}"
        for arm in request.all_arms()
        for refusal in refusals(arm.strategy, members)
    ]
    return Draft(request, {}, refused)
