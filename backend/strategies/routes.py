"""`/strategies`."""

from fastapi import APIRouter

from backend.auth.dependencies import AnyPrincipal
from backend.contracts.strategies import StrategyInfo, describe_strategies

router = APIRouter(tags=["catalogue"])


@router.get("/strategies", summary="Strategies and their parameters")
def list_strategies(_principal: AnyPrincipal) -> list[StrategyInfo]:
    """Every strategy with what it shares, which differences it handles, and its parameters."""
    return describe_strategies()
