"""The arms of a comparison: variants of strategies, tuned local baselines, protected twins."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import streamlit as st
from pydantic import ValidationError

from backend.contracts.clients import Client
from backend.contracts.comparisons import ArmTraining
from backend.contracts.enums import StrategyName
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings, platform_refusals
from backend.contracts.strategies import PARAMS, Params, StrategyInfo
from dashboard.components.compatibility import verdict
from dashboard.components.form_errors import show_form_errors
from dashboard.components.privacy_form import epsilon_caption
from dashboard.components.schema_form import schema_form

MAX_VARIANTS = 6
LOCAL_RATES = {3e-4: "lr_3e_4", 1e-3: "lr_1e_3", 3e-3: "lr_3e_3"}
PROTECTED = "private"
_NO_LABEL = re.compile(r"[^a-z0-9]+")

Arm = dict[str, Any]
"""Values of an `ArmCreate`, not yet validated."""


def variants_form(
    info: StrategyInfo, clients: Sequence[Client], key: str, *, grouping: bool
) -> list[Arm]:
    """The arms of one strategy: as many variants as one likes, each with its own parameters.

    Args:
        info: the strategy.
        clients: the federation's members.
        key: prefix of the widgets' keys.
        grouping: whether it shares inside groups where its clients are not equal.
    """
    if info.name is StrategyName.LOCAL_ONLY:
        return [{"strategy": {"name": info.name.value}}]
    with st.expander(f"{info.title}: parameters and variants"):
        count = st.number_input(
            f"Variants of {info.title}", 1, MAX_VARIANTS, 1, key=f"{key}.variants",
            help="Each variant is an arm of its own, with its own label and parameters.",
        )  # fmt: skip
        places = range(int(count))
        tabs = st.tabs([f"Variant {place + 1}" for place in places]) if count > 1 else [st]
        return [
            _variant(info, clients, place + 1, f"{key}.{place}", tab, grouping=grouping)
            for place, tab in zip(places, tabs, strict=True)
        ]


def label_of(text: str) -> str | None:
    """What somebody typed as a label: lower case words joined by underscores, or None."""
    return _NO_LABEL.sub("_", text.lower()).strip("_") or None


def local_arms(common_rate: float | None) -> list[Arm]:
    """`local_only` at the rate of all others, and at each of `LOCAL_RATES` that is another one."""
    local: Arm = {"strategy": {"name": StrategyName.LOCAL_ONLY.value}}
    return [
        local,
        *(
            local | {"label": label, "training": {"learning_rate": rate}}
            for rate, label in LOCAL_RATES.items()
            if rate != common_rate
        ),
    ]


def protection_form(num_rounds: int, key: str) -> DifferentialPrivacy | None:
    """Ask whether the sharing arms run once more with differential privacy, and with which."""
    with st.expander("Privacy"):
        if not st.toggle(
            "Add each sharing arm once more with differential privacy", key=f"{key}.wanted",
            help="Beside the arm without protection, so that the table says what privacy costs.",
        ):  # fmt: skip
            return None
        values = schema_form(DifferentialPrivacy.model_json_schema(), key, {})
        try:
            settings = DifferentialPrivacy.model_validate(values)
        except ValidationError as error:
            show_form_errors(error)
            return None
        epsilon_caption(settings, num_rounds)
        if not settings.publish_measurements:
            st.warning(
                "Clients that publish no measurements give an arm without any accuracy to "
                "compare: switch that on, if the owners agree.",
                icon=":material/warning:",
            )
        return settings


def protected(arms: Iterable[Arm], settings: DifferentialPrivacy) -> tuple[list[Arm], list[str]]:
    """The arms that can be protected, protected; and why the others cannot.

    Arms whose parameters are no valid strategy are left out; the form tells about those anyway.
    """
    privacy = PrivacySettings(differential_privacy=settings)

    def refused(params: Params, _arm: Arm) -> list[str]:
        return [text for texts in platform_refusals(params, privacy).values() for text in texts]

    return twins_of(arms, PROTECTED, {"privacy": privacy.model_dump(mode="json")}, refused)


def twins_of(
    arms: Iterable[Arm],
    name: str,
    addition: Arm,
    refused: Callable[[Params, Arm], Iterable[str]],
) -> tuple[list[Arm], list[str]]:
    """The sharing arms that can have something more, with it; and why the others cannot.

    Arms whose values are not valid are left out; the form tells about those anyway.

    Args:
        arms: that may have it.
        name: added to their labels.
        addition: values of the twin.
        refused: why an arm with these parameters cannot have it; `ValidationError`: not valid.
    """
    twins: list[Arm] = []
    reasons: list[str] = []
    for arm in arms:
        if arm["strategy"]["name"] == StrategyName.LOCAL_ONLY:
            continue
        try:
            found = list(refused(PARAMS.validate_python(arm["strategy"]), arm))
        except ValidationError:
            continue
        if found:
            reasons += found
        else:
            label = "_".join(filter(None, (arm.get("label"), name)))
            twins.append(arm | {"label": label} | addition)
    return twins, list(dict.fromkeys(reasons))


def _variant(
    info: StrategyInfo, clients: Sequence[Client], number: int, key: str, tab: Any, *,
    grouping: bool,
) -> Arm:  # fmt: skip
    with tab.container():
        label = st.text_input(
            "Label", "" if number == 1 else f"v{number}", key=f"{key}.label", max_chars=40,
            placeholder="none",
            help="Stands behind the strategy's name in every table; lower case letters and digits.",
        )  # fmt: skip
        properties: Mapping[str, Any] = dict(info.params_schema.get("properties", {}))  # type: ignore[call-overload]
        shown = {name: prop for name, prop in properties.items() if name != "group_by"}
        values = {"name": info.name.value} | schema_form({"properties": shown}, key, {})
        training = schema_form(ArmTraining.model_json_schema(), f"{key}.training", {})
    if grouping and "group_by" in properties and verdict(values, clients).refusals:
        values["group_by"] = "architecture"
    return {"strategy": values, "label": label_of(label), "training": training}
