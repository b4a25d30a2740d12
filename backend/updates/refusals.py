"""Refusals of what agents send."""

from backend.contracts.common import FieldError
from backend.errors import InvalidError


def invalid(field: str, code: str, message: str) -> InvalidError:
    """A refusal that names one field."""
    return InvalidError(message, code=code, errors=[FieldError(field=field, message=message)])
