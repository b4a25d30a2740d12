"""Protection of what clients send: differential privacy and secure aggregation, both optional.

What each promises, against whom and at what price: `docs/how-to/privacy.md`.
"""

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.enums import StrategyName
from backend.contracts.params.h2tune import H2TuneParams
from backend.contracts.params.heterotune import HeteroTuneParams
from backend.contracts.privacy_accounting import epsilon_after
from backend.contracts.strategies import Params, info_of, is_grouped, title_of


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DifferentialPrivacy(_Settings):
    """Every client clips its change and adds Gaussian noise before anything leaves it."""

    noise_multiplier: float = Field(
        1.0,
        gt=0,
        le=1e6,
        title="Noise multiplier",
        description="Standard deviation of the noise over the clipping norm. More noise gives a "
        "smaller epsilon and a worse model; epsilon falls about in proportion.",
    )
    clip_norm: float = Field(
        1.0,
        gt=0,
        le=1e6,
        title="Clipping norm",
        description="A client's change of all shared matrices together is scaled down to at most "
        "this Euclidean norm. It does not alter epsilon, but the noise grows with it: choose about "
        "the median norm of a change (metric `update_norm`, where measurements are published).",
    )
    delta: float = Field(
        1e-5,
        gt=0,
        lt=1,
        title="Delta",
        description="Probability with which the promise of epsilon may fail; far below one over "
        "the number of clients.",
    )
    publish_measurements: bool = Field(
        False,
        title="Publish measurements",
        description="Accuracies and losses are computed from a client's data, and epsilon does not "
        "cover them. Off: they stay with the client, and the run page shows costs and epsilon "
        "only. On: for research on data that need no protection.",
    )

    def epsilon_after(self, num_rounds: int) -> float:
        """What so many rounds cost a client; see `privacy_accounting`."""
        return epsilon_after(num_rounds, self.noise_multiplier, self.delta)


class SecureAggregation(_Settings):
    """The server learns the sum of the clients' updates, and no single one."""

    threshold: int | None = Field(
        None,
        ge=3,
        title="Threshold",
        description="How many clients must stay to the end of a round for its sum to be opened; "
        "fewer than that learn nothing together with the server. Empty: two thirds, at least 3.",
    )
    value_range: float = Field(
        16.0,
        gt=0,
        le=1e6,
        title="Value range",
        description="Largest absolute value that a shared number may have. Sums are exact to half "
        "a step of value range / 2^30 a client; a client with a larger number stops the round.",
    )


class PrivacySettings(_Settings):
    """How a run protects what clients send; empty: not at all."""

    differential_privacy: DifferentialPrivacy | None = None
    secure_aggregation: SecureAggregation | None = None


NO_PRIVACY = PrivacySettings()

SMALLEST_SUM = 3
"""With two clients, each could take its own update off the sum and see the other's."""


def threshold_of(settings: SecureAggregation, num_clients: int) -> int:
    """How many of a round's clients must stay: as set, else two thirds, never below three."""
    return settings.threshold or max(SMALLEST_SUM, -(-2 * num_clients // 3))


def privacy_refusals(params: Params, privacy: PrivacySettings) -> list[str]:
    """Why this strategy cannot be protected in this way; whole sentences with the remedy."""
    wanted = {
        "differential privacy": privacy.differential_privacy,
        "secure aggregation": privacy.secure_aggregation,
    }
    return [
        reason
        for protection, settings in wanted.items()
        if settings is not None
        for reason in _refusals(params, protection)
    ]


def platform_refusals(params: Params, privacy: PrivacySettings) -> dict[str, list[str]]:
    """Why this strategy cannot be protected so, by field of the settings; empty: it can.

    Who takes part and how rounds close matters too: `secure_rules.secure_refusals`.
    """
    noise = PrivacySettings(differential_privacy=privacy.differential_privacy)
    masks = PrivacySettings(secure_aggregation=privacy.secure_aggregation)
    found = {
        "differential_privacy": privacy_refusals(params, noise),
        "secure_aggregation": privacy_refusals(params, masks),
    }
    return {field: reasons for field, reasons in found.items() if reasons}


def _refusals(params: Params, protection: str) -> list[str]:
    title = title_of(params)
    if params.name is StrategyName.LOCAL_ONLY:
        return [f"{title} shares nothing, so {protection} has nothing to protect: leave it out."]
    resolves = isinstance(params, H2TuneParams | HeteroTuneParams) and params.conflict != "none"
    if resolves:
        return [
            f"Resolving conflicts compares the updates of single clients, so {protection} is not "
            "offered with it: set `conflict` to `none`."
        ]
    if isinstance(params, HeteroTuneParams):
        return []  # without that it is linear, which its capabilities cannot say
    if not info_of(params.name).capabilities.linear_aggregation:
        return [
            f"{title} needs more of each client's update than a weighted sum, so {protection} is "
            "not offered for it: choose a strategy with linear aggregation, such as h2tune."
        ]
    if protection == "secure aggregation" and is_grouped(params):
        return [
            f"{title} adds up updates within groups, and a group may be too small to hide a "
            "client: set `group_by` to `none` for secure aggregation."
        ]
    if isinstance(params, H2TuneParams):
        return _h2tune_refusals(params, protection)
    return []


def _h2tune_refusals(params: H2TuneParams, protection: str) -> list[str]:
    """Masks and alignments tell about data once they are trained, and they travel in the clear."""
    found = []
    if params.mask_warmup_rounds > 0:
        found.append(
            f"With {protection}, h2tune must not learn masks from data, because they are sent as "
            "they are: set `mask_warmup_rounds` to 0."
        )
    if params.train_alignment:
        found.append(
            f"With {protection}, h2tune must not train the layer alignment, because how much of a "
            "slot a client fills is sent as it is: set `train_alignment` to false."
        )
    if params.code_selection == "gradient":
        found.append(
            f"With {protection}, h2tune must not choose codes by a client's own loss, because the "
            "choice is sent as it is: set `code_selection` to `leading`."
        )
    if params.aggregation == "relevance":
        found.append(
            f"Aggregation `relevance` compares single clients, so {protection} is not offered with "
            "it: set `aggregation` to `delta`."
        )
    elif protection == "differential privacy" and params.aggregation != "delta":
        found.append(
            f"With aggregation `{params.aggregation}` a client sends whole matrices, of which "
            "there is no small change to clip: set `aggregation` to `delta`."
        )
    if protection == "secure aggregation" and params.control == "alone":
        found.append(
            "Control `alone` keeps every client's matrices apart, so there is no sum to hide them "
            "in: leave secure aggregation out of this arm."
        )
    if protection == "secure aggregation" and params.layout != "block":
        found.append(
            f"With layout `{params.layout}` clients hold different entries, and the sum of an "
            "entry that one client holds is that client's value: set `layout` to `block`."
        )
    return found
