"""What a client's owner demands of a run before the agent computes anything for it.

The platform sets a run's noise, and the platform is whom the noise protects from; so an owner may
set a limit that no run can change.
"""

from backend.contracts.agent import Work
from backend.contracts.enums import RoundKind
from worker.agent.errors import PrivacyLimitError


def require_within(work: Work, max_epsilon: float | None) -> None:
    """Passes when the whole run stays within the limit; without a limit always.

    Args:
        work: a round of the run; the deliver round sends nothing and always passes.
        max_epsilon: largest privacy loss that this client accepts in one run.

    Raises:
        PrivacyLimitError: the run has no noise, too little of it, or publishes measurements.
    """
    if max_epsilon is None or work.kind is RoundKind.DELIVER:
        return
    noise = work.privacy.differential_privacy
    demand = f"the owner of this client accepts an epsilon of at most {max_epsilon:g} in a run"
    if noise is None:
        raise PrivacyLimitError(
            f"This run has no differential privacy, and {demand}: start a run with it."
        )
    if noise.publish_measurements:
        raise PrivacyLimitError(
            f"This run publishes measurements, which epsilon does not cover, and {demand}: set "
            "publish_measurements to false."
        )
    spent = noise.epsilon_after(max(work.num_rounds, work.round_number))
    if spent > max_epsilon:
        raise PrivacyLimitError(
            f"This run has an epsilon of {spent:.3g} over {work.num_rounds} rounds, and {demand}: "
            "raise noise_multiplier, or run fewer rounds."
        )


def require_masked(work: Work) -> None:
    """Passes when no update of this client can be seen alone.

    Raises:
        PrivacyLimitError: the run has no secure aggregation.
    """
    if work.secure is None and work.kind is not RoundKind.DELIVER:
        raise PrivacyLimitError(
            "This run has no secure aggregation, and the owner of this client sends updates behind "
            "masks only: start a run with it."
        )
