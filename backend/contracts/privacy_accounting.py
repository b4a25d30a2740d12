"""What rounds of Gaussian noise cost: the exact epsilon, from the standard library alone.

Every program asks here, so the form, the stored metric and the run page say the same.

One round releases clip(change) + N(0, (z C)^2) with norm bound C. Whatever a client's data are
replaced by, the clipped change moves by at most 2 C, so the round is a Gaussian mechanism of
sensitivity over deviation 2 / z. T rounds, each of which may depend on all that came before,
together are exactly as private as one Gaussian mechanism with mu = 2 sqrt(T) / z (Dong, Roth and
Su, Gaussian Differential Privacy, 2019, theorem 3 and corollary 2). Its privacy curve is known in
closed form (Balle and Wang 2018, theorem 8):

    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - e^epsilon Phi(-mu / 2 - epsilon / mu)

This is tight; an accountant by Renyi divergences gives the same or more.
"""

import math

SENSITIVITY = 2.0
"""In clipping norms: how far two clipped changes can lie apart when all data are replaced."""

_FAR = -35.0  # below it `erfc` loses digits, and the series is exact to 1e-12


def epsilon_after(num_rounds: int, noise_multiplier: float, delta: float) -> float:
    """Smallest epsilon for which the rounds so far are (epsilon, delta)-private for a client.

    Args:
        num_rounds: rounds in which the client sent an update; 0 costs nothing.
        noise_multiplier: z, standard deviation of the noise over the clipping norm, above 0.
        delta: in (0, 1).

    Raises:
        ValueError: a value is out of its range.
    """
    if num_rounds < 0 or not noise_multiplier > 0 or not 0 < delta < 1:
        raise ValueError(
            f"num_rounds is {num_rounds}, noise_multiplier {noise_multiplier}, delta {delta}: "
            "they must be at least 0, above 0, and between 0 and 1."
        )
    if num_rounds == 0:
        return 0.0
    mu = SENSITIVITY * math.sqrt(num_rounds) / noise_multiplier
    if delta_at(0.0, mu) <= delta:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    while (middle := (low + high) / 2) not in {low, high}:
        if delta_at(middle, mu) > delta:
            low = middle
        else:
            high = middle
    return high


def delta_at(epsilon: float, mu: float) -> float:
    """Smallest delta of a Gaussian mechanism at an epsilon of at least 0.

    Args:
        epsilon: at least 0.
        mu: sensitivity over standard deviation, above 0.
    """
    reached = _log_normal(mu / 2 - epsilon / mu)
    missed = epsilon + _log_normal(-mu / 2 - epsilon / mu)
    return max(0.0, math.exp(reached) - math.exp(min(missed, reached)))


def _log_normal(x: float) -> float:
    """Log Phi(x) without underflow."""
    if x > _FAR:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2)))
    inverse = 1 / (x * x)
    series = 1 - inverse * (1 - 3 * inverse * (1 - 5 * inverse * (1 - 7 * inverse)))
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)
