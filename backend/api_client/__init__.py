"""The public SDK of FedBraid's REST API; `ApiClient` is where to begin."""

from backend.api_client.client import ApiClient
from backend.api_client.errors import (
    ApiClientError,
    ApiError,
    ApiUnreachableError,
    UnauthenticatedError,
    UnexpectedAnswerError,
)

__all__ = [
    "ApiClient",
    "ApiClientError",
    "ApiError",
    "ApiUnreachableError",
    "UnauthenticatedError",
    "UnexpectedAnswerError",
]
