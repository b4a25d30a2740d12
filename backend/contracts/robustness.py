"""Robust aggregation: how a run combines updates when some clients may be hostile or broken.

What each rule promises, and what none can: `docs/how-to/hostile-clients.md`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.enums import StrategyName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.privacy import NO_PRIVACY, PrivacySettings
from backend.contracts.strategies import Params, info_of, is_grouped, title_of

Rule = Literal["none", "trimmed_mean", "median", "krum", "multi_krum", "norm_clipping"]
"""What takes the place of the weighted mean.

- none: nothing, the strategy's own weighted mean.
- trimmed_mean, median: of every number by itself (Yin et al. 2018).
- krum, multi_krum: whole updates that lie closest to others (Blanchard et al. 2017).
- norm_clipping: the weighted mean of changes that were shortened (Sun et al. 2019).
"""

SMALLEST_CROWD = 3
"""Of two updates, none can be told to be the odd one out."""

_HAIR = 1e-9  # a hair of rounding error does not cost a client


class Robustness(BaseModel):
    """What a run does about hostile clients; empty: it trusts them all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = Field(
        "none",
        title="Rule",
        description="none: the strategy's weighted mean. trimmed_mean: of every number the "
        "largest and smallest are left out. median: the middle one of every number; withstands "
        "most, and loses what only few clients know. krum: the one update closest to the others. "
        "multi_krum: the mean of all but the f most distant updates. norm_clipping: the weighted "
        "mean, with long changes shortened; the mildest. All but the last count every client "
        "alike, however many examples it states.",
    )
    trim_share: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        title="Trimmed share",
        description="trimmed_mean: this share of the clients, rounded down, is left out at either "
        "end. At least the share of hostile clients that you expect.",
    )
    num_hostile: int = Field(
        1,
        ge=1,
        le=1_000_000,
        title="Hostile clients",
        description="krum and multi_krum: so many hostile clients are withstood. A round needs "
        "twice as many updates, and three more.",
    )
    clip_norm: float | None = Field(
        None,
        gt=0,
        le=1e12,
        title="Clipping norm",
        description="norm_clipping: longer changes are scaled down to this Euclidean norm, over "
        "all shared matrices together. Empty: the median of the round's norms.",
    )
    max_update_norm: float | None = Field(
        None,
        gt=0,
        le=1e12,
        title="Largest norm",
        description="An update whose change is longer than this is refused, with any rule: the "
        "round goes on without it where the rounds' settings allow that. Empty: no limit.",
    )

    def num_trimmed(self, num_updates: int) -> int:
        """How many updates are left out at either end of every number; always leaves one."""
        most = max(0, (num_updates - 1) // 2)
        match self.rule:
            case "median":
                return most
            case "trimmed_mean":
                return min(most, int(self.trim_share * num_updates + _HAIR))
            case _:
                return 0

    @property
    def fewest_updates(self) -> int:
        """How many updates a round needs for the rule to promise anything."""
        match self.rule:
            case "trimmed_mean":
                return max(SMALLEST_CROWD, -int(-1 // (self.trim_share + _HAIR)))
            case "median":
                return SMALLEST_CROWD
            case "krum" | "multi_krum":
                return 2 * self.num_hostile + 3
            case "norm_clipping" if self.clip_norm is None:
                return SMALLEST_CROWD
            case _:
                return 1

    @property
    def is_off(self) -> bool:
        """True where updates are neither checked nor combined in another way."""
        return self.rule == "none" and self.max_update_norm is None


TRUSTING = Robustness()


def robustness_refusals(
    params: Params,
    robustness: Robustness,
    num_updates: int,
    privacy: PrivacySettings = NO_PRIVACY,
) -> dict[str, str]:
    """Why a run cannot be robust in this way, by field; whole sentences with the remedy.

    Args:
        params: of the strategy.
        robustness: what is asked for.
        num_updates: in the smallest round that the run's policy lets close.
        privacy: of the same run.
    """
    found = {}
    if robustness.max_update_norm is not None:
        reason = unreadable(params, privacy)
        if reason is not None:
            found["max_update_norm"] = reason
    if robustness.rule != "none":
        reason = (
            unreadable(params, privacy) or _not_one_sum(params) or _too_few(robustness, num_updates)
        )
        if reason is not None:
            found["rule"] = reason
    return found


def unreadable(params: Params, privacy: PrivacySettings = NO_PRIVACY) -> str | None:
    """Why the server cannot compare the changes of single clients; None: it can."""
    title = title_of(params)
    if params.name is StrategyName.LOCAL_ONLY:
        return (
            f"{title} shares nothing, so a hostile client can spoil nothing: leave robustness out."
        )
    if privacy.secure_aggregation is not None:
        return (
            "With secure aggregation the server sees no single update, so it can neither compare "
            "nor bound them: leave out one of the two."
        )
    if not info_of(params.name).capabilities.linear_aggregation:
        return (
            f"{title} does not add up matrices of equal shape, so its updates have no common "
            "numbers to compare: choose a strategy with linear aggregation, such as h2tune or "
            "fedit."
        )
    if is_grouped(params):
        return (
            f"{title} adds up updates within groups, in which hostile clients may be the majority: "
            "set `group_by` to `none`."
        )
    if isinstance(params, H2TuneParams) and params.aggregation in {"mean", "coverage"}:
        return (
            f"With aggregation `{params.aggregation}` an H2Tune client sends whole matrices, "
            "scaled by what it fills of each slot, which do not compare: set `aggregation` to "
            "`delta`."
        )
    return None


def _not_one_sum(params: Params) -> str | None:
    if not isinstance(params, H2TuneParams):
        return None
    if params.aggregation == "relevance":
        return (
            "Aggregation `relevance` gives H2Tune's clients different sums, of which a robust rule "
            "could protect none: set `aggregation` to `delta`."
        )
    if params.control == "alone":
        return (
            "Control `alone` adds up nothing, so there is nothing for a robust rule to protect: "
            "leave the rule out of this arm."
        )
    if params.conflict != "none":
        return (
            f"Conflict `{params.conflict}` already changes the updates that a robust rule would "
            "compare: set `conflict` to `none`."
        )
    return None


def _too_few(robustness: Robustness, num_updates: int) -> str | None:
    needed = robustness.fewest_updates
    if num_updates >= needed:
        return None
    setting = {
        "trimmed_mean": f" with trim_share {robustness.trim_share:g}",
        "krum": f" against {robustness.num_hostile} hostile",
        "multi_krum": f" against {robustness.num_hostile} hostile",
    }.get(robustness.rule, "")
    remedy = {
        "trimmed_mean": "raise trim_share",
        "krum": "lower num_hostile",
        "multi_krum": "lower num_hostile",
        "norm_clipping": "give clip_norm",
    }.get(robustness.rule, "choose norm_clipping with a clip_norm")
    return (
        f"The rule {robustness.rule}{setting} needs {needed} updates in every round, but a round "
        f"of this run may close with {num_updates}: add clients, ask for more updates with "
        f"min_clients, or {remedy}."
    )
