"""Errors that people cause or can fix: a plain sentence, an HTTP status and a stable code."""

from backend.contracts.common import FieldError


class PlatformError(Exception):
    """Something is wrong with a request or with the state it meets.

    Args:
        message: names the field, the value and the remedy; shown to people as it is.
        errors: one entry per wrong field, where there are fields.
    """

    status = 400
    code = "bad_request"

    def __init__(
        self, message: str, *, code: str | None = None, errors: list[FieldError] | None = None
    ):
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.errors = errors or []


class UnauthenticatedError(PlatformError):
    """Nobody, or nobody we know."""

    status = 401
    code = "unauthenticated"


class ForbiddenError(PlatformError):
    """Somebody who may not do this."""

    status = 403
    code = "forbidden"


class NotFoundError(PlatformError):
    """No such thing, or none that the caller may see."""

    status = 404
    code = "not_found"


class ConflictError(PlatformError):
    """The state does not allow this now."""

    status = 409
    code = "conflict"


class TooLargeError(PlatformError):
    """More bytes than allowed."""

    status = 413
    code = "too_large"


class UnsupportedMediaError(PlatformError):
    """The bytes are not what their type claims."""

    status = 415
    code = "unsupported_media_type"


class RangeError(PlatformError):
    """A part was asked for that does not exist."""

    status = 416
    code = "range_not_satisfiable"

    def __init__(self, message: str, *, size_bytes: int):
        super().__init__(message)
        self.size_bytes = size_bytes


class LockedError(PlatformError):
    """Too often: later."""

    status = 429
    code = "too_many_requests"

    def __init__(self, message: str, *, code: str | None = None, retry_after_seconds: int = 1):
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class QuotaReachedError(LockedError):
    """So much for this hour or day."""

    code = "quota_exceeded"


class InvalidError(PlatformError):
    """Well-formed, but a value is not acceptable."""

    status = 422
    code = "invalid"


class RetryableJobError(Exception):
    """A background job met something that passes by itself; it will be done again."""
