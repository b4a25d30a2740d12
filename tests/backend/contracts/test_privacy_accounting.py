import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp

from backend.contracts.privacy_accounting import delta_at, epsilon_after

# (noise multiplier of a round as the others count it: deviation over sensitivity, rounds, delta)
# -> epsilon by RdpAccountant and by PLDAccountant of dp-accounting 0.6.0, Google's library.
PUBLISHED = {
    (1.0, 1, 1e-5): (4.728507067217623, 4.37717810002493),
    (1.0, 10, 1e-5): (19.05359753163139, 17.85658683146691),
    (0.5, 5, 1e-6): (32.23843939256122, 30.57888232469245),
    (4.0, 100, 1e-5): (14.132226163159334, 13.206712241909576),
    (20.0, 20, 1e-3): (0.6042534085668072, 0.5184175854663352),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_epsilon_is_what_published_accountants_say(case: tuple[float, int, float]) -> None:
    over_sensitivity, num_rounds, delta = case
    by_renyi, by_loss_distribution = PUBLISHED[case]
    ours = epsilon_after(num_rounds, 2 * over_sensitivity, delta)
    # Their discretised loss distribution is an upper bound that is tight to about 1e-4.
    assert by_loss_distribution - 1e-3 < ours <= by_loss_distribution
    assert ours < by_renyi


@pytest.mark.parametrize("case", PUBLISHED)
def test_epsilon_is_below_the_renyi_composition(case: tuple[float, int, float]) -> None:
    over_sensitivity, num_rounds, delta = case
    orders = [1 + step / 10 for step in range(1, 640)]
    # A Gaussian mechanism has Renyi divergence alpha / (2 sigma^2), and rounds add up.
    closed_form = [num_rounds * order / (2 * over_sensitivity**2) for order in orders]
    theirs = rdp.compute_rdp(
        q=1.0, noise_multiplier=over_sensitivity, steps=num_rounds, orders=orders
    )
    assert theirs == pytest.approx(closed_form)
    bound, _ = rdp.get_privacy_spent(orders=orders, rdp=closed_form, delta=delta)
    classical = min(
        divergence + math.log(1 / delta) / (order - 1)
        for order, divergence in zip(orders, closed_form, strict=True)
    )
    ours = epsilon_after(num_rounds, 2 * over_sensitivity, delta)
    assert ours < bound < classical
    assert ours > 0.8 * bound


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 5.0, 60.0, 500.0])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.2])
def test_delta_agrees_with_fifty_digits(mu: float, share: float) -> None:
    epsilon = share * mu * (mu / 2 + 4)
    with mpmath.workdps(50):
        exact = mpmath.ncdf(mpmath.mpf(mu) / 2 - epsilon / mpmath.mpf(mu)) - mpmath.exp(
            epsilon
        ) * mpmath.ncdf(-mpmath.mpf(mu) / 2 - epsilon / mpmath.mpf(mu))
        assert delta_at(epsilon, mu) == pytest.approx(float(exact), rel=1e-6, abs=1e-13)


@given(
    st.integers(1, 10_000),
    st.floats(0.01, 1000),
    st.floats(1e-12, 0.5),
)
def test_epsilon_is_the_smallest_that_keeps_the_promise(
    num_rounds: int, noise: float, delta: float
) -> None:
    epsilon = epsilon_after(num_rounds, noise, delta)
    mu = 2 * math.sqrt(num_rounds) / noise
    assert delta_at(epsilon, mu) <= delta
    assert epsilon == 0 or delta_at(epsilon * (1 - 1e-6), mu) > delta
    assert epsilon_after(num_rounds + 1, noise, delta) >= epsilon


def test_no_round_costs_nothing() -> None:
    assert epsilon_after(0, 1.0, 1e-5) == 0


@pytest.mark.parametrize(
    "values", [(-1, 1.0, 1e-5), (1, 0.0, 1e-5), (1, 1.0, 0.0), (1, 1.0, 1.0), (1, math.nan, 0.1)]
)
def test_values_out_of_range_are_refused(values: tuple[int, float, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        epsilon_after(*values)
