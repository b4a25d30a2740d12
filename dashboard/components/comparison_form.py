"""The settings of a comparison: strategies, seeds, controls, rounds and local training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import streamlit as st
from pydantic import ValidationError

from backend.contracts.clients import Client
from backend.contracts.comparisons import ComparisonCreate
from backend.contracts.compatibility import participant_of, refusals
from backend.contracts.strategies import StrategyInfo, StrategyName
from backend.contracts.training import TrainingConfig
from dashboard.components.compatibility import verdict
from dashboard.components.formatting import escape
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
            "only if it is lost when the shared matrices are permuted.",
        )  # fmt: skip
        grouping = st.toggle(
            "Share inside groups where needed", value=True, key=f"{KEY}.grouping",
            help="Strategies that need equal models run inside groups of equal architecture, and "
            "every table says so.",
        )  # fmt: skip
    arms = [_arm(info, clients, grouping=grouping) for info in chosen]
    training_errors = errors_below("training", None, errors)
    with st.expander("Local training, the same for all", expanded=bool(training_errors)):
        training = schema_form(TrainingConfig.model_json_schema(), f"{KEY}.training",
                               training_errors)  # fmt: skip
    return _draft(
        {
            "name": name,
            "arms": [{"strategy": arm} for arm in arms],
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
                f"{len(arms)} arms times {seeds} {'seed' if seeds == 1 else 'seeds'}: "
                f"{len(arms) * seeds} runs, a few at once ({', '.join(arms)})"
            )
        )


def _arm(info: StrategyInfo, clients: Sequence[Client], *, grouping: bool) -> dict[str, Any]:
    """Values of one strategy; whether it shares inside groups is one answer for all of them."""
    properties = dict(info.params_schema.get("properties", {}))  # type: ignore[call-overload]
    is_groupable = properties.pop("group_by", None) is not None
    values: dict[str, Any] = {"name": info.name.value}
    if len(properties) > 1:
        with st.expander(f"Parameters of {info.title}"):
            values |= schema_form({"properties": properties}, f"{KEY}.{info.name}", {})
    if grouping and is_groupable and verdict(values, clients).refusals:
        values["group_by"] = "architecture"
    return values


def _draft(values: Mapping[str, Any], clients: Sequence[Client]) -> Draft:
    try:
        request = ComparisonCreate.model_validate(values)
    except ValidationError as error:
        found = {
            ".".join(str(part) for part in item["loc"]): item["msg"]
            for item in error.errors(include_url=False)
        }
        return Draft(None, found, [])
    members = [participant_of(client) for client in clients]
    refused = [
        f"{arm.name}: {refusal.reason}"
        for arm in request.all_arms()
        for refusal in refusals(arm.strategy, members)
    ]
    return Draft(request, {}, refused)
