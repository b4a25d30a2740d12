"""Which robust rules a run may ask for, and the sentences that refuse the others."""

import pytest
from pydantic import TypeAdapter, ValidationError

from backend.contracts.enums import StrategyName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.lora import FedItParams
from backend.contracts.privacy import (
    NO_PRIVACY,
    DifferentialPrivacy,
    PrivacySettings,
    SecureAggregation,
)
from backend.contracts.robustness import TRUSTING, Robustness, robustness_refusals
from backend.contracts.strategies import Params, info_of

PARAMS: TypeAdapter[Params] = TypeAdapter(Params)
RULES = [
    Robustness(rule="trimmed_mean"),
    Robustness(rule="median"),
    Robustness(rule="krum"),
    Robustness(rule="multi_krum"),
    Robustness(rule="norm_clipping"),
]


@pytest.mark.parametrize("settings", RULES, ids=lambda settings: settings.rule)
@pytest.mark.parametrize("name", list(StrategyName))
def test_linear_strategies_offer_every_rule_and_the_others_say_why_not(
    name: StrategyName, settings: Robustness
) -> None:
    bounded = settings.model_copy(update={"max_update_norm": 1.0})
    found = robustness_refusals(PARAMS.validate_python({"name": name}), bounded, 5)
    is_linear = info_of(name).capabilities.linear_aggregation
    if is_linear and name is not StrategyName.LOCAL_ONLY:
        assert found == {}
    else:
        assert found.keys() == {"rule", "max_update_norm"}
        assert all(info_of(name).title in reason for reason in found.values())
        assert all(": choose" in reason or ": leave" in reason for reason in found.values())


@pytest.mark.parametrize(
    ("params", "rule", "bound"),
    [
        (H2TuneParams(aggregation="relevance"), "set `aggregation` to `delta`", None),
        (H2TuneParams(conflict="cmga"), "set `conflict` to `none`", None),
        (H2TuneParams(aggregation="mean"), "set `aggregation` to `delta`", "set `aggregation`"),
        (H2TuneParams(aggregation="coverage"), "set `aggregation`", "set `aggregation`"),
        (FedItParams(group_by="architecture"), "set `group_by` to `none`", "set `group_by`"),
    ],
)
def test_parameters_that_contradict_a_rule_are_named(
    params: Params, rule: str, bound: str | None
) -> None:
    settings = Robustness(rule="median", max_update_norm=2.0)
    found = robustness_refusals(params, settings, 9)
    assert rule in found["rule"]
    assert bound is None or bound in found["max_update_norm"]
    assert (bound is None) == ("max_update_norm" not in found)


def test_secure_aggregation_contradicts_and_noise_does_not() -> None:
    settings = Robustness(rule="median", max_update_norm=2.0)
    secure = PrivacySettings(secure_aggregation=SecureAggregation())
    noise = PrivacySettings(differential_privacy=DifferentialPrivacy())
    found = robustness_refusals(FedItParams(), settings, 9, secure)
    assert found.keys() == {"rule", "max_update_norm"}
    assert all("leave out one of the two" in reason for reason in found.values())
    assert robustness_refusals(FedItParams(), settings, 9, noise) == {}


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        (Robustness(rule="krum", num_hostile=1), 5),
        (Robustness(rule="multi_krum", num_hostile=3), 9),
        (Robustness(rule="median"), 3),
        (Robustness(rule="norm_clipping"), 3),
        (Robustness(rule="norm_clipping", clip_norm=1.0), 1),
        (Robustness(rule="trimmed_mean", trim_share=0.1), 10),
        (Robustness(rule="trimmed_mean", trim_share=0.25), 4),
        (Robustness(rule="trimmed_mean", trim_share=0.49), 3),
        (TRUSTING, 1),
    ],
)
def test_a_rule_needs_so_many_updates(settings: Robustness, needed: int) -> None:
    assert robustness_refusals(FedItParams(), settings, needed, NO_PRIVACY) == {}
    assert settings.fewest_updates == needed
    if needed > 1:
        reason = robustness_refusals(FedItParams(), settings, needed - 1)["rule"]
        assert f"needs {needed} updates" in reason
        assert f"may close with {needed - 1}: add clients" in reason
    if settings.rule == "trimmed_mean":
        assert settings.num_trimmed(needed) >= 1


@pytest.mark.parametrize("share", [0.1, 0.25, 1 / 3, 0.4999999999])
def test_trimming_leaves_at_least_one_of_any_number(share: float) -> None:
    for settings in (Robustness(rule="trimmed_mean", trim_share=share), Robustness(rule="median")):
        for count in range(1, 40):
            assert count - 2 * settings.num_trimmed(count) >= 1
    exact = Robustness(rule="trimmed_mean", trim_share=1 / 3)
    assert [exact.num_trimmed(count) for count in (3, 6, 9)] == [1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"rule": "mean"},
        {"trim_share": 0},
        {"trim_share": 0.5},
        {"num_hostile": 0},
        {"clip_norm": 0},
        {"max_update_norm": -1},
        {"max_update_norm": float("nan")},
        {"beta": 0.1},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Robustness.model_validate(values)
