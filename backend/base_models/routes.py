"""`/base-models`."""

from fastapi import APIRouter

from backend.auth.dependencies import AnyPrincipal
from backend.base_models import service
from backend.contracts.base_models import BaseModelInfo

router = APIRouter(tags=["catalogue"])


@router.get("/base-models", summary="Built-in base models")
def list_base_models(_principal: AnyPrincipal) -> list[BaseModelInfo]:
    """The tiny models that ship with the platform, with their shapes."""
    return service.list_base_models()
