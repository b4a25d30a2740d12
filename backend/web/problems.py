"""Every error as RFC 9457 problem details, with one handler for each family of errors."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from starlette.exceptions import HTTPException

from backend.contracts.common import FieldError, Problem
from backend.errors import LockedError, PlatformError, RangeError
from backend.web.validation import field_errors, summary

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = "5"  # when a service behind this one is away
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
}


def problem_answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the errors that routes answer with these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }


COMMON_PROBLEMS = problem_answers(400, 401, 403, 404, 409, 413, 422, 429)


def problem_response(
    status: int,
    code: str,
    detail: str,
    errors: list[FieldError] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An answer with problem details."""
    problem = Problem(
        title=HTTPStatus(status).phrase,
        status=status,
        code=code,
        detail=detail,
        errors=errors or [],
    )
    return JSONResponse(
        problem.model_dump(mode="json"), status, headers=headers, media_type=MEDIA_TYPE
    )


def add_problem_handlers(app: FastAPI) -> None:
    """Registers the handlers; whatever none of them knows is answered by `unexpected`."""
    app.exception_handler(PlatformError)(_platform_error)
    app.exception_handler(RequestValidationError)(_validation_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(DataError)(_data_error)
    app.exception_handler(OperationalError)(_database_away)


def unexpected() -> JSONResponse:
    """The answer to a request that met a bug; the log has the details."""
    return problem_response(
        500,
        "internal_error",
        "Something went wrong here, and it is not your fault. The server's log has the details "
        "under the X-Request-ID of this answer.",
    )


def _platform_error(_request: Request, error: PlatformError) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if error.status == HTTPStatus.UNAUTHORIZED else None
    if isinstance(error, LockedError):
        headers = {"Retry-After": str(error.retry_after_seconds)}
    if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = {"Retry-After": RETRY_AFTER_SECONDS}
    if isinstance(error, RangeError):
        headers = {"Content-Range": f"bytes */{error.size_bytes}"}
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("%s: %s", error.code, error.message, exc_info=error)
    return problem_response(error.status, error.code, error.message, error.errors, headers)


def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
    errors = field_errors(error)
    return problem_response(422, "invalid", summary(errors), errors)


def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    code = _CODES.get(error.status_code, "http_error")
    detail = str(error.detail)
    if error.status_code == HTTPStatus.BAD_REQUEST:  # FastAPI's, of bytes that are no text
        detail = "The body cannot be read. Send JSON (RFC 8259) in UTF-8."
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}; see /docs for what there is."
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not possible at {request.url.path}; see /docs."
    return problem_response(error.status_code, code, detail, headers=error.headers)


def _data_error(_request: Request, error: DataError) -> JSONResponse:
    """The last net: contracts should have refused the value with the name of its field."""
    logger.warning("the database refused a value: %s", error.orig)
    return problem_response(
        422,
        "invalid",
        "A value cannot be stored: it holds a NUL character or is out of range. Correct it and "
        "try again.",
    )


def _database_away(_request: Request, error: OperationalError) -> JSONResponse:
    logger.error("the database failed", exc_info=error)
    return problem_response(
        503,
        "database_unavailable",
        "The database does not answer. Try again in a few seconds.",
        headers={"Retry-After": RETRY_AFTER_SECONDS},
    )
