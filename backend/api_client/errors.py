"""What can go wrong between a caller and the API, as sentences that people can act on."""

from backend.contracts.common import FieldError, Problem


class ApiClientError(Exception):
    """Base of everything that `ApiClient` raises on its own."""


class ApiError(ApiClientError):
    """The API refused a request and said why.

    Attributes:
        problem: the problem details as they came; `problem.code` is stable and safe to branch on.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(_sentence(problem))

    @property
    def status(self) -> int:
        """HTTP status, such as 404."""
        return self.problem.status

    @property
    def code(self) -> str:
        """Stable code, such as `not_found`."""
        return self.problem.code

    @property
    def field_errors(self) -> list[FieldError]:
        """One entry per wrong field; empty when the request as a whole was refused."""
        return self.problem.errors


class UnauthenticatedError(ApiError):
    """The token is missing, wrong, revoked or expired: sign in again (HTTP 401)."""


class ApiUnreachableError(ApiClientError):
    """No answer came: the API is down, the address is wrong, or the line is bad."""

    def __init__(self, base_url: str, reason: str) -> None:
        self.base_url = base_url
        super().__init__(
            f"The FedBraid API at {base_url} does not answer ({reason}). "
            "Check the address and that the platform is running (`fedbraid up`)."
        )


class UnexpectedAnswerError(ApiClientError):
    """An answer came that this version does not understand."""

    def __init__(self, base_url: str, path: str, reason: str) -> None:
        super().__init__(
            f"{base_url} answered {path} in a way that this version does not understand ({reason})."
            " Check that the address is that of a FedBraid API of the same version."
        )


def _sentence(problem: Problem) -> str:
    """The detail, followed by each field's message unless the detail says it already."""
    parts = [problem.detail or problem.title]
    parts += [
        f"{error.field}: {error.message}"
        for error in problem.errors
        if error.message not in problem.detail
    ]
    return " ".join(parts)
