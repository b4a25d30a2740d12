"""The one list of strategies: a name, and what makes the strategy from its parameters."""

from collections.abc import Mapping
from typing import Any, Protocol

from backend.contracts.enums import StrategyName
from backend.contracts.strategies import Params, is_grouped
from worker.federated.strategies.colora import CoLora
from worker.federated.strategies.fed_plora import FedPLora
from worker.federated.strategies.fedex_lora import FedExLora
from worker.federated.strategies.fedit import FedIt
from worker.federated.strategies.fedsa_lora import FedSaLora
from worker.federated.strategies.ffa_lora import FfaLora
from worker.federated.strategies.flexlora import FlexLora
from worker.federated.strategies.flora import Flora
from worker.federated.strategies.florist import Florist
from worker.federated.strategies.grouped import Grouped
from worker.federated.strategies.h2tune import H2Tune
from worker.federated.strategies.heterotune import HeteroTune
from worker.federated.strategies.hetlora import HetLora
from worker.federated.strategies.local_only import LocalOnly
from worker.federated.strategy import Strategy


class StrategyFactory(Protocol):
    """A strategy's class: takes that strategy's own parameters."""

    def __call__(self, params: Any) -> Strategy:
        """The strategy with these parameters."""


STRATEGIES: Mapping[StrategyName, StrategyFactory] = {
    StrategyName.LOCAL_ONLY: LocalOnly,
    StrategyName.H2TUNE: H2Tune,
    StrategyName.FEDIT: FedIt,
    StrategyName.FFA_LORA: FfaLora,
    StrategyName.FEDSA_LORA: FedSaLora,
    StrategyName.FEDEX_LORA: FedExLora,
    StrategyName.FLORA: Flora,
    StrategyName.FED_PLORA: FedPLora,
    StrategyName.HETLORA: HetLora,
    StrategyName.FLEXLORA: FlexLora,
    StrategyName.FLORIST: Florist,
    StrategyName.HETEROTUNE: HeteroTune,
    StrategyName.COLORA: CoLora,
}


def build_strategy(params: Params) -> Strategy:
    """The strategy that the parameters name, inside groups of equal clients if they say so."""
    strategy = STRATEGIES[params.name](params)
    return Grouped(params, strategy) if is_grouped(params) else strategy
