"""What an arm of an experiment is: nobody trains, everybody alone, all together, or one for all."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from backend.contracts.params.lora import LocalOnlyParams
from backend.contracts.strategies import Params

GaugeSource = Literal["none", "reference", "exchange"]
"""Factors that clients bring along: none (the strategy makes its own), or made from codes of one
client's model, or of all clients' models."""

Federations = Literal["one", "same_model", "same_family", "different_models"]


class _Arm(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UntrainedArm(_Arm):
    """No training at all."""

    kind: Literal["untrained"] = "untrained"
    name: str = "untrained"


class LocalArm(_Arm):
    """Every client alone, by default at its best."""

    kind: Literal["local"] = "local"
    name: str
    strategy: Params = LocalOnlyParams()
    learning_rates: tuple[float, ...] = Field(min_length=1)
    gauge: GaugeSource = "none"
    chosen_by: Literal["validation", "last_round"] = Field(
        "validation",
        description="validation: the rate and round of lowest validation loss, round 0 included. "
        "last_round: the last round of the only rate.",
    )


class PooledArm(_Arm):
    """Each model trained on the rows of all clients of its task: what there is to be gained.

    Nobody who keeps data private can do that, so it is a yardstick, never the best local arm. It
    trains as many times more rounds as there are rows more, so that each is seen as often as in the
    federation.
    """

    kind: Literal["pooled"] = "pooled"
    name: str
    strategy: LocalOnlyParams = LocalOnlyParams()
    learning_rates: tuple[float, ...] = Field(
        min_length=1, description="rate and round are those of lowest loss on all validation rows"
    )


class FederatedArm(_Arm):
    """All clients together; the last round counts, nothing is chosen."""

    kind: Literal["federated"] = "federated"
    name: str
    strategy: Params
    gauge: GaugeSource = "none"
    federations: Federations = Field(
        "one",
        description="one: all clients share. same_model: only clients of one base model share. "
        "same_family: only clients whose models are of one architecture. different_models: the "
        "clients form federations in which every model comes once.",
    )


Arm = Annotated[UntrainedArm | LocalArm | PooledArm | FederatedArm, Field(discriminator="kind")]
