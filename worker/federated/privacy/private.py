"""Any strategy, with every client's change clipped and noised before it leaves the client.

Idea. Differential privacy is a matter of what leaves a client, not of how a method works, so this
wrapper stands around a strategy: the wrapped one trains as ever, and the wrapper replaces what it
would send. The server aggregates noised updates and needs to know nothing of it.

Promise. Local model, client level: whatever one client's whole data set were replaced by, the
distribution of all that it sends in a run changes by at most (epsilon, delta), for everybody who
sees it, the server included. `backend.contracts.privacy_accounting` says how large epsilon is.

What leaves the client besides the noised tensors does not depend on its data: shapes, masks and
alignments that no data have touched, what its base model makes of public probe texts before round
1, the registered number of examples, times and sizes. Measured
accuracies and losses do depend on them; they stay with the client unless the run publishes them.
"""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from backend.contracts.enums import RoundKind
from backend.contracts.metrics import MetricName
from backend.contracts.privacy import DifferentialPrivacy, PrivacySettings, privacy_refusals
from backend.contracts.strategies import Params
from worker.federated.errors import InvalidConfigError
from worker.federated.privacy.exposure import references
from worker.federated.privacy.keystream import KEY_BYTES
from worker.federated.privacy.noise import release
from worker.federated.strategy import Strategy
from worker.federated.types import (
    ClientPlan,
    ClientUpdate,
    LocalClient,
    Metrics,
    Progress,
)
from worker.federated.wrapped import Wrapped

NoiseKeys = Callable[[ClientPlan], bytes]
"""The key of one client's noise in one round."""

PUBLIC_METRICS = frozenset(
    {
        MetricName.BYTES_UP,
        MetricName.BYTES_DOWN,
        MetricName.BYTES_UP_VALUES,
        MetricName.BYTES_DOWN_VALUES,
        MetricName.BYTES_LORA,
        MetricName.SECONDS_LOAD,
        MetricName.SECONDS_TRAIN,
        MetricName.SECONDS_EVALUATE,
        MetricName.PEAK_MEMORY_BYTES,
        MetricName.NUM_EXAMPLES,
        MetricName.EPSILON,
    }
)
"""What a run without published measurements still shows: costs, and the epsilon spent."""


def unpredictable_key(_plan: ClientPlan) -> bytes:
    """A key from the operating system's secure source, as real clients need it.

    A key that follows from the run's seed is no secret: the server chose the seed, and could
    compute the noise and take it off again.
    """
    return secrets.token_bytes(KEY_BYTES)


def reproducible_key(plan: ClientPlan) -> bytes:
    """A key that follows from run, client and round: for simulations, where nobody is hidden."""
    text = f"noise\x1f{plan.seed}\x1f{plan.client_id}\x1f{plan.round_number}"
    return hashlib.sha256(text.encode()).digest()


def with_noise(
    strategy: Strategy,
    params: Params,
    settings: DifferentialPrivacy | None,
    make_key: NoiseKeys,
) -> Strategy:
    """The strategy with noise as these settings want it; itself where there are none.

    Args:
        strategy: made from `params`.
        params: of the strategy.
        settings: of the run.
        make_key: `unpredictable_key`, or `reproducible_key` in simulations.

    Raises:
        InvalidConfigError: this strategy cannot be protected in this way.
    """
    if settings is None:
        return strategy
    reasons = privacy_refusals(params, PrivacySettings(differential_privacy=settings))
    if reasons:
        raise InvalidConfigError(" ".join(reasons))
    return Private(strategy, params, settings, make_key)


class Private(Wrapped):
    """See the module's text."""

    def __init__(
        self, inner: Strategy, params: Params, settings: DifferentialPrivacy, make_key: NoiseKeys
    ) -> None:
        super().__init__(inner, params)
        self.settings = settings
        self._make_key = make_key

    def train_client(self, plan: ClientPlan, client: LocalClient) -> ClientUpdate:
        """The wrapped strategy's round; what it shares leaves clipped and noised.

        In the round before the first the client's data play no part, and nothing is noised.

        Raises:
            InvalidConfigError: the strategy sends something that cannot be noised.
        """
        update = self.inner.train_client(plan, self._quiet(client))
        if plan.kind is RoundKind.GAUGE:
            return update
        received = references(self.params, plan, update.shared)
        secret = {name: update.shared[name] for name in received}
        released = release(secret, received, self.settings, self._make_key(plan))
        metrics: Metrics = {
            **update.metrics,
            MetricName.UPDATE_NORM: released.change_norm,
            MetricName.EPSILON: self.settings.epsilon_after(plan.round_number),
        }
        shared = {**update.shared, **released.tensors}
        return replace(update, shared=shared, metrics=self._published(metrics))

    def deliver_client(self, plan: ClientPlan, client: LocalClient, folder: Path) -> Metrics:
        """As the wrapped strategy does; nothing is shared in this round."""
        return self._published(self.inner.deliver_client(plan, self._quiet(client), folder))

    def _published(self, metrics: Metrics) -> Metrics:
        if self.settings.publish_measurements:
            return metrics
        return {name: value for name, value in metrics.items() if name in PUBLIC_METRICS}

    def _quiet(self, client: LocalClient) -> LocalClient:
        """The client, with signs of life that carry no loss unless the run publishes it."""
        if self.settings.publish_measurements:
            return client

        def report(progress: Progress) -> None:
            client.on_progress(replace(progress, values={}))

        return replace(client, on_progress=report)
