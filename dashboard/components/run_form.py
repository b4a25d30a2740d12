"""The settings of a run: strategy, its parameters, rounds, seed and local training."""

from collections.abc import Mapping, Sequence
from typing import Any

import streamlit as st

from backend.api_client.errors import ApiError
from backend.contracts.enums import StrategyName
from backend.contracts.round_policy import RoundPolicy
from backend.contracts.runs import RunCreate
from backend.contracts.stopping import StopRule
from backend.contracts.strategies import StrategyInfo
from backend.contracts.training import TrainingConfig
from dashboard.components.formatting import escape
from dashboard.components.labels import strategy_caption
from dashboard.components.privacy_form import privacy_form
from dashboard.components.robustness_form import robustness_form
from dashboard.components.schema_form import schema_form

Errors = Mapping[str, str]
"""Message by path of the field, such as `training.learning_rate`."""


def run_form(strategies: Sequence[StrategyInfo], key: str, errors: Errors) -> dict[str, Any]:
    """Show the form and give the values of a `RunCreate`, not yet validated."""
    left, middle, right = st.columns([2, 1, 1])
    ordered = sorted(strategies, key=lambda info: info.name is StrategyName.LOCAL_ONLY)
    strategy = left.selectbox(
        "Strategy", ordered, format_func=lambda info: info.title, key=f"{key}.strategy"
    )
    num_rounds = middle.number_input(
        "Rounds", 1, 10_000, 5, key=f"{key}.num_rounds",
        help="Each round: every client trains, then the shared matrices are combined.",
    )  # fmt: skip
    seed = right.number_input(
        "Seed", 0, 2**31 - 1, 0, key=f"{key}.seed",
        help="The same seed and settings give the same run.",
    )  # fmt: skip
    st.caption(escape(strategy_caption(strategy)))
    strategy_errors = errors_below("strategy", strategy.name, errors)
    training_errors = errors_below("training", None, errors)
    params: dict[str, Any] = {}
    if len(dict(strategy.params_schema.get("properties", {}))) > 1:  # type: ignore[call-overload]
        with st.expander(f"Parameters of {strategy.title}", expanded=bool(strategy_errors)):
            params = schema_form(strategy.params_schema, f"{key}.{strategy.name}", strategy_errors)
    with st.expander("Local training", expanded=bool(training_errors)):
        training = schema_form(
            TrainingConfig.model_json_schema(), f"{key}.training", training_errors
        )
    round_errors = errors_below("round_policy", None, errors)
    with st.expander("Rounds", expanded=bool(round_errors)):
        st.caption(
            "By default everybody takes part in every round, and a round waits for all. Here some "
            "clients may be fewer, late or fail without ending the run."
        )
        round_policy = schema_form(
            RoundPolicy.model_json_schema(), f"{key}.round_policy", round_errors
        )
        if "" in round_errors:
            st.caption(f":red[:material/error: {escape(round_errors[''])}]")
        stop_when = _stop_form(key, errors_below("stop_when", None, errors))
    chosen = {"name": strategy.name, **params}
    privacy = privacy_form(chosen, num_rounds, key, errors_below("privacy", None, errors))
    robustness = robustness_form(chosen, privacy, key, errors_below("robustness", None, errors))
    return {
        "strategy": chosen,
        "num_rounds": num_rounds,
        "seed": seed,
        "training": training,
        "privacy": privacy,
        "robustness": robustness,
        "round_policy": round_policy,
        "stop_when": stop_when,
    }


def _stop_form(key: str, errors: Errors) -> dict[str, Any] | None:
    if not st.toggle(
        "Stop early",
        key=f"{key}.stop_early",
        help="Goes to the delivery before the last round, once the clients have learned enough.",
    ):
        return None
    values = schema_form(StopRule.model_json_schema(), f"{key}.stop_when", errors)
    if "" in errors:
        st.caption(f":red[:material/error: {escape(errors[''])}]")
    return values


def baseline_toggle(values: Mapping[str, Any], key: str) -> bool:
    """Ask whether to run the baseline too; not offered when the run is the baseline itself."""
    if values["strategy"]["name"] == StrategyName.LOCAL_ONLY:
        return False
    return bool(
        st.toggle(
            "Also run the local-only baseline",
            value=True,
            key=f"{key}.baseline",
            help="Plain LoRA with the same seed, rounds and training, nothing shared. Without it "
            "nobody can tell whether working together helped a client or hurt it.",
        )
    )


def baseline_of(run: RunCreate) -> RunCreate:
    """The same run with nothing shared, and so with nothing to protect or to spoil."""
    alone = {"strategy": {"name": StrategyName.LOCAL_ONLY}, "privacy": {}, "robustness": {}}
    return RunCreate.model_validate(run.model_dump() | alone)


def api_errors(error: ApiError) -> dict[str, str]:
    """What the API refuses, by the path of the field; a leading `body.` is dropped."""
    return {item.field.removeprefix("body."): item.message for item in error.field_errors}


def errors_below(prefix: str, tag: str | None, errors: Errors) -> dict[str, str]:
    """Errors of one part of the form; a union's tag between prefix and field is dropped."""
    found = {}
    for path, message in errors.items():
        parts = path.split(".")
        if parts[0] == prefix:
            rest = parts[2:] if tag is not None and parts[1:2] == [tag] else parts[1:]
            found[".".join(rest)] = message
    return found
