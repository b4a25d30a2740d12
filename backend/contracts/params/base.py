"""What the parameter models of all strategies have in common.

The browser builds its form from their fields, so each carries a title, a description that says how
to choose a value, and its allowed range.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class StrategyParams(BaseModel):
    """What all parameter models have in common: unknown fields are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupableParams(StrategyParams):
    """Of strategies that add up matrices of equal shape: they may run inside groups instead."""

    group_by: Literal["none", "architecture"] = Field(
        "none",
        title="Groups",
        description="none: all clients share, and clients whose shapes do not fit are refused "
        "(default). architecture: the strategy runs inside groups of clients of equal "
        "architecture, and of equal rank where it needs that; a client alone in its group trains "
        "alone.",
    )
