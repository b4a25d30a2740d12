"""The public SDK: one object that speaks to a FedBraid API."""

from types import TracebackType
from typing import Self

import httpx
from pydantic import SecretStr

from backend.api_client.accounts import Account, AuditTrail, Sessions, Users
from backend.api_client.agent import AgentWork
from backend.api_client.clients import Clients, EnrolmentKeys
from backend.api_client.comparisons import Comparisons
from backend.api_client.federations import Catalogue, Federations
from backend.api_client.runs import Runs
from backend.api_client.transport import Transport
from backend.contracts.users import Session, SignIn


class ApiClient:
    """Every endpoint as a typed method, in groups named like the URLs.

    Example:
        Sign in, start a run of the newest federation and wait for its end::

            with ApiClient("http://127.0.0.1:8000") as api:
                api.sign_in("admin", password)
                federation = next(api.federations.list())
                run = api.federations.create_run(
                    federation.id, RunCreate(strategy=H2TuneParams(), num_rounds=5)
                )
                run = api.runs.start(run.id)
                while not run.status.is_terminal:
                    time.sleep(2)
                    run = api.runs.get(run.id)
                for adapter in api.runs.adapters(run.id):
                    api.runs.download_adapter(
                        run.id, adapter.client_id, Path(f"{adapter.client_name}.zip")
                    )

    Args:
        base_url: root of the server, such as `http://127.0.0.1:8000`, without `/api/v1`.
        token: session token of a user or credential of a client; may be set later.
        timeout: seconds for connecting, and for each read or write.
        max_retries: further tries of a GET when no answer came; other methods are never repeated.
        backoff_seconds: wait before the first retry; doubles with each.
        transport: replaces the network, for tests and in-process use.

    Raises:
        ApiError: by every method, when the API refuses.
        ApiUnreachableError: by every method, when no answer comes.
        UnexpectedAnswerError: by every method, when the answer is not one of this version.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        max_retries: int = 2,
        backoff_seconds: float = 0.25,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        base_url = base_url.rstrip("/")
        self._http = httpx.Client(base_url=base_url, timeout=timeout, transport=transport)
        self.use_token(token)
        shared = Transport(self._http, base_url, max_retries, backoff_seconds)
        self.sessions = Sessions(shared)
        self.users = Users(shared)
        self.account = Account(shared)
        self.audit = AuditTrail(shared)
        self.enrolment_keys = EnrolmentKeys(shared)
        self.clients = Clients(shared)
        self.catalogue = Catalogue(shared)
        self.federations = Federations(shared)
        self.runs = Runs(shared)
        self.comparisons = Comparisons(shared)
        self.agent = AgentWork(shared)

    def use_token(self, token: str | None) -> None:
        """Send this token from now on; None sends none."""
        if token is None:
            self._http.headers.pop("Authorization", None)
        else:
            self._http.headers["Authorization"] = f"Bearer {token}"

    def sign_in(self, username: str, password: str, code: str | None = None) -> Session:
        """Open a session and use its token from now on; `code`: of the second factor."""
        session = self.sessions.create(
            SignIn(username=username, password=SecretStr(password), code=code)
        )
        self.use_token(session.token)
        return session

    def close(self) -> None:
        """Give back the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
