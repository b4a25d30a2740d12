"""The REST API in memory, from the contracts alone, with runs in any state one likes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from backend.contracts.base_models import Architecture, BaseModelInfo, BaseModelRef
from backend.contracts.clients import (
    Client,
    ClientRegister,
    ClientRegistered,
    EnrolmentKey,
    EnrolmentKeyCreate,
    EnrolmentKeyCreated,
)
from backend.contracts.common import FieldError, Page, Problem
from backend.contracts.comparisons import ComparisonResults
from backend.contracts.datasets import (
    BUILTIN_TASK_KINDS,
    BuiltinDataset,
    BuiltinTaskInfo,
    BuiltinTaskName,
)
from backend.contracts.enums import (
    EventKind,
    Execution,
    Role,
    RoundKind,
    RoundStatus,
    RunStatus,
    StrategyName,
    TaskKind,
    UpdateStatus,
)
from backend.contracts.federations import Federation, FederationCreate, FederationDetail
from backend.contracts.metrics import MetricName
from backend.contracts.quotas import QuotaUse
from backend.contracts.refusals import Refusal
from backend.contracts.runs import (
    Adapter,
    ClientUpdate,
    Event,
    LiveRun,
    MetricPoint,
    Round,
    Run,
    RunCreate,
)
from backend.contracts.signatures import SigningKey
from backend.contracts.strategies import StrategyInfo, describe_strategies
from backend.contracts.users import Session, SignIn, User, UserCreate
from tests.dashboard.fake_accounts import CODE, Accounts, add_account_routes
from tests.dashboard.fake_comparisons import add_comparison_routes
from tests.dashboard.fake_probe_sets import add_probe_set_routes
from tests.dashboard.fake_storage import FakeStorage, add_storage_routes
from tests.dashboard.fake_trust import add_trust_routes

PASSWORD = "correct horse battery"
TOKEN = "fbs_test"
SHAPES = {
    "tiny_llama": Architecture(family="llama", num_layers=4, hidden_size=128),
    "tiny_gemma": Architecture(family="gemma", num_layers=6, hidden_size=96),
    "tiny_qwen2": Architecture(family="qwen2", num_layers=5, hidden_size=112),
}
KINDS = dict(BUILTIN_TASK_KINDS)


class RefusalError(Exception):
    def __init__(self, status: int, code: str, detail: str, errors: list[FieldError] | None = None):
        self.problem = Problem(
            title=code, status=status, code=code, detail=detail, errors=errors or []
        )


def now() -> datetime:
    return datetime.now(UTC)


class FakePlatform:
    """State, and the few operations by which tests move it on."""

    def __init__(self) -> None:
        self.user = User(id=uuid4(), username="admin", role=Role.ADMINISTRATOR, created_at=now())
        self.users = [self.user]
        self.accounts = Accounts()
        self.storage = FakeStorage()
        self.session_valid = True
        self.reachable = True
        self.keys: list[EnrolmentKey] = []
        self.clients: list[Client] = []
        self.locked_out: set[UUID] = set()
        self.federations: list[FederationDetail] = []
        self.runs: list[Run] = []
        self.comparisons: dict[UUID, ComparisonResults] = {}
        self.rounds: dict[UUID, list[Round]] = {}
        self.metrics: dict[UUID, list[MetricPoint]] = {}
        self.events: dict[UUID, list[Event]] = {}
        self.adapters: dict[UUID, list[Adapter]] = {}
        self.uploads: dict[UUID, bytes] = {}
        self.probe_sets: dict[UUID, list[str]] = {}
        self.refusals: list[Refusal] = []
        self.usage: list[QuotaUse] = []
        self.signing_keys: dict[UUID, list[SigningKey]] = {}
        self.run_refusal: RefusalError | None = None
        self.live_calls: list[int] = []
        self._journal = 0

    # --- making things -------------------------------------------------------------------

    def add_client(
        self, name: str, model: str = "tiny_llama", rank: int = 8, **changes: Any
    ) -> Client:
        task = changes.pop("task", BuiltinTaskName.ARITHMETIC_FILL_IN)
        values: dict[str, Any] = {
            "id": uuid4(),
            "name": name,
            "execution": Execution.MANAGED,
            "base_model": BaseModelRef(source="builtin", id=model),
            "architecture": SHAPES[model],
            "lora_rank": rank,
            "lora_alpha": 2.0 * rank,
            "task": KINDS[task],
            "dataset": BuiltinDataset(task=task),
            "created_at": now(),
            "last_seen_at": now() - timedelta(minutes=3),
        }
        client = Client(**(values | changes))
        self.clients.append(client)
        return client

    def add_federation(
        self, name: str, clients: list[Client], global_rank: int = 16
    ) -> FederationDetail:
        federation = FederationDetail(
            id=uuid4(),
            name=name,
            description="",
            global_rank=global_rank,
            num_clients=len(clients),
            num_runs=0,
            created_at=now(),
            clients=clients,
        )
        self.federations.append(federation)
        return federation

    def add_run(
        self, federation: FederationDetail, create: RunCreate, status: RunStatus = RunStatus.CREATED
    ) -> Run:
        run = Run(
            id=uuid4(),
            federation_id=federation.id,
            status=status,
            round_number=0,
            error=None,
            created_at=now() - timedelta(minutes=2),
            started_at=None if status is RunStatus.CREATED else now() - timedelta(minutes=2),
            ended_at=None,
            **create.model_dump(),
        )
        self.runs.append(run)
        self.rounds[run.id], self.metrics[run.id] = [], []
        self.events[run.id], self.adapters[run.id] = [], []
        self.event(run, EventKind.RUN_CREATED, "The run was created by admin.")
        return run

    def change(self, run: Run, **changes: Any) -> Run:
        index = next(i for i, item in enumerate(self.runs) if item.id == run.id)
        self.runs[index] = self.runs[index].model_copy(update=changes)
        return self.runs[index]

    def event(self, run: Run, kind: EventKind, message: str, **fields: Any) -> None:
        self._journal += 1
        values = {"client_id": None, "round_number": None, "data": {}} | fields
        self.events[run.id].append(
            Event(
                id=self._journal, run_id=run.id, kind=kind, message=message, created_at=now(),
                **values,
            )
        )  # fmt: skip

    def measure(
        self, run: Run, client: Client, number: int, name: MetricName, value: float,
        step: int | None = None,
    ) -> None:  # fmt: skip
        self._journal += 1
        self.metrics[run.id].append(
            MetricPoint(
                id=self._journal,
                client_id=client.id,
                round_number=number,
                scope="round" if step is None else "progress",
                step=step,
                name=name,
                value=value,
                created_at=now(),
            )
        )

    def members(self, run: Run) -> list[Client]:
        return next(f for f in self.federations if f.id == run.federation_id).clients

    def play_round(self, run: Run, number: int, kind: RoundKind = RoundKind.TRAIN) -> None:
        """A whole round with plausible values, drawn from a seeded generator."""
        draw = random.Random(f"{run.seed} {number} {run.strategy.name}")
        shares = run.strategy.name is StrategyName.H2TUNE
        self.event(run, EventKind.ROUND_OPENED, f"Round {number} opened.", round_number=number)
        updates = []
        for i, client in enumerate(self.members(run)):
            top = 0.35 + 0.05 * (i % 5) + (0.06 if shares else 0)
            after = top * (1 - 0.6 ** (number + 1)) + draw.uniform(-0.01, 0.01)
            before = after - 0.05
            size = client.architecture.num_layers * 7 * 256 * 4
            if kind is RoundKind.TRAIN:
                for step in range(1, 41):
                    loss = 2.5 * 0.75 ** (number + step / 40) + draw.uniform(-0.05, 0.05)
                    self.measure(run, client, number, MetricName.TRAIN_LOSS, loss, step)
                for name, value in {
                    MetricName.ACCURACY_BEFORE_TRAINING: before,
                    MetricName.ACCURACY_AFTER_TRAINING: after,
                    MetricName.SPARSITY: 1 - (client.lora_rank / 16) ** 2,
                    MetricName.BYTES_UP: size if shares else 0,
                    MetricName.BYTES_DOWN: size * 1.5 if shares else 0,
                    MetricName.BYTES_LORA: size * 4,
                }.items():
                    self.measure(run, client, number, name, value)
                message = f"{client.name} sent its update of round {number}."
                self.event(
                    run, EventKind.UPDATE_ACCEPTED, message, client_id=client.id,
                    round_number=number,
                )  # fmt: skip
            elif kind is RoundKind.GAUGE:
                self.measure(run, client, number, MetricName.BYTES_UP, 1_000_000)
            else:
                self.measure(run, client, number, MetricName.ACCURACY_DELIVERED, after)
                self._deliver(run, client)
            updates.append(self.update(client, UpdateStatus.ACCEPTED, 40, 40))
        self.rounds[run.id].append(
            Round(
                round_number=number, kind=kind, status=RoundStatus.CLOSED, opened_at=now(),
                closed_at=now(), report={}, client_updates=updates,
            )
        )  # fmt: skip
        self.change(run, round_number=number)

    def update(
        self, client: Client, status: UpdateStatus, step: int, num_steps: int, **changes: Any
    ) -> ClientUpdate:
        values: dict[str, Any] = {
            "id": uuid4(),
            "client_id": client.id,
            "client_name": client.name,
            "status": status,
            "num_attempts": 1,
            "stage": "training",
            "step": step,
            "num_steps": num_steps,
            "error": None,
            "started_at": now(),
            "ended_at": None,
        }
        return ClientUpdate(**(values | changes))

    def play_to_end(self, run: Run) -> Run:
        for number in range(1, run.num_rounds + 1):
            self.play_round(run, number)
        self.play_round(run, run.num_rounds + 1, RoundKind.DELIVER)
        self.event(run, EventKind.RUN_COMPLETED, "The run has completed.")
        return self.change(run, status=RunStatus.COMPLETED, ended_at=now())

    def _deliver(self, run: Run, client: Client) -> None:
        content = self.adapter_bytes(client)
        self.adapters[run.id].append(
            Adapter(
                run_id=run.id, client_id=client.id, client_name=client.name,
                size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest(),
                created_at=now(),
            )
        )  # fmt: skip
        self.event(
            run, EventKind.ADAPTER_READY, f"The adapter of {client.name} is ready.",
            client_id=client.id,
        )  # fmt: skip

    def adapter_bytes(self, client: Client) -> bytes:
        return b"PK" + client.name.encode() * 3000

    # --- answering -----------------------------------------------------------------------

    def transport(self) -> httpx.MockTransport:
        """Answers an `ApiClient` in this process."""
        inner = TestClient(make_app(self), raise_server_exceptions=True)

        def handle(request: httpx.Request) -> httpx.Response:
            if not self.reachable:
                raise httpx.ConnectError("connection refused")
            answer = inner.request(
                request.method, str(request.url), content=request.read(),
                headers=dict(request.headers),
            )  # fmt: skip
            return httpx.Response(answer.status_code, content=answer.content)

        return httpx.MockTransport(handle)


def find(items: list[Any], wanted: UUID) -> Any:
    for item in items:
        if item.id == wanted:
            return item
    raise RefusalError(404, "not_found", f"There is nothing with id {wanted}.")


def make_app(platform: FakePlatform) -> FastAPI:
    """The endpoints that the dashboard calls."""
    app = FastAPI()

    @app.exception_handler(RefusalError)
    def refuse(_: Request, refusal: RefusalError) -> Response:
        return JSONResponse(refusal.problem.model_dump(mode="json"), refusal.problem.status)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> Response:
        errors = [
            FieldError(field=".".join(map(str, item["loc"][1:])), message=item["msg"])
            for item in error.errors()
        ]
        problem = Problem(
            title="Invalid", status=422, code="invalid", detail="Wrong fields.", errors=errors
        )
        return JSONResponse(problem.model_dump(mode="json"), 422)

    def signed_in(authorization: Annotated[str | None, Header()] = None) -> None:
        if authorization != f"Bearer {TOKEN}" or not platform.session_valid:
            raise RefusalError(401, "unauthenticated", "The session has expired.")

    guarded = [Depends(signed_in)]
    _accounts(app, platform, guarded)
    _clients(app, platform, guarded)
    _one_client(app, platform, guarded)
    _catalogue(app, guarded)
    _federations(app, platform, guarded)
    _runs(app, platform, guarded)
    add_comparison_routes(app, platform, guarded, route, find)
    add_trust_routes(app, platform, guarded, route, find)
    add_account_routes(app, platform, guarded, route, RefusalError)
    add_storage_routes(app, platform, guarded, route, find)
    add_probe_set_routes(app, platform, guarded, route)
    return app


Guards = list[Any]


def route(
    app: FastAPI, method: str, path: str, guards: Guards, status: int = 200
) -> Callable[..., Any]:
    return app.api_route(
        f"/api/v1{path}", methods=[method], dependencies=guards, status_code=status,
        response_model=None,
    )  # fmt: skip


def _accounts(app: FastAPI, platform: FakePlatform, guards: Guards) -> None:
    @route(app, "POST", "/sessions", [], 201)
    def sign_in(body: SignIn) -> Session:
        if body.username != "admin" or body.password.get_secret_value() != PASSWORD:
            raise RefusalError(401, "unauthenticated", "The user name or the password is wrong.")
        if platform.user.has_second_factor and body.code is None:
            raise RefusalError(401, "second_factor_required", "Send the code.")
        if platform.user.has_second_factor and body.code != CODE:
            raise RefusalError(401, "wrong_second_factor", "The code is wrong.")
        platform.session_valid = True
        return Session(token=TOKEN, expires_at=now() + timedelta(hours=1), user=platform.user)

    @route(app, "DELETE", "/sessions/current", guards, 204)
    def sign_out() -> Response:
        platform.session_valid = False
        return Response(status_code=204)

    @route(app, "GET", "/users/me", guards)
    def me() -> User:
        return platform.user

    @route(app, "GET", "/users", guards)
    def users() -> Page[User]:
        return Page(items=platform.users)

    @route(app, "POST", "/users", guards, 201)
    def create_user(body: UserCreate) -> User:
        user = User(id=uuid4(), username=body.username, role=body.role, created_at=now())
        platform.users.append(user)
        return user


def _clients(app: FastAPI, platform: FakePlatform, guards: Guards) -> None:
    @route(app, "POST", "/enrolment-keys", guards, 201)
    def create_key(body: EnrolmentKeyCreate) -> EnrolmentKeyCreated:
        key = EnrolmentKey(
            id=uuid4(), label=body.label, max_uses=body.max_uses, num_uses=0,
            expires_at=now() + timedelta(hours=body.expires_in_hours), revoked_at=None,
            created_at=now(),
        )  # fmt: skip
        platform.keys.append(key)
        return EnrolmentKeyCreated(key=key, secret=f"fbe_{key.id.hex}")

    @route(app, "GET", "/enrolment-keys", guards)
    def keys() -> Page[EnrolmentKey]:
        return Page(items=platform.keys[::-1])

    @route(app, "DELETE", "/enrolment-keys/{key_id}", guards, 204)
    def revoke(key_id: UUID) -> Response:
        find(platform.keys, key_id).revoked_at = now()
        return Response(status_code=204)

    @route(app, "POST", "/clients/register", [], 201)
    def register(body: ClientRegister) -> ClientRegistered:
        if any(client.name == body.name for client in platform.clients):
            raise RefusalError(409, "conflict", f"There is a client named {body.name!r} already.")
        client = platform.add_client(
            body.name, body.base_model.id, body.lora_rank, dataset=body.dataset, last_seen_at=None
        )
        return ClientRegistered(client=client, credential="fbc_1")

    @route(app, "GET", "/clients", guards)
    def clients() -> Page[Client]:
        return Page(items=platform.clients[::-1])

    @route(app, "PUT", "/clients/{client_id}/dataset", guards)
    async def upload(client_id: UUID, request: Request) -> Client:
        client: Client = find(platform.clients, client_id)
        platform.uploads[client_id] = await request.body()
        return client


def _one_client(app: FastAPI, platform: FakePlatform, guards: Guards) -> None:
    @route(app, "GET", "/clients/{client_id}", guards)
    def client(client_id: UUID) -> Client:
        return find(platform.clients, client_id)

    @route(app, "POST", "/clients/{client_id}/approval", guards)
    def approve(client_id: UUID) -> Client:
        found: Client = find(platform.clients, client_id)
        found.is_pending = False
        return found

    @route(app, "POST", "/clients/{client_id}/credential", guards)
    def rotate(client_id: UUID) -> ClientRegistered:
        return ClientRegistered(client=find(platform.clients, client_id), credential="fbc_fresh")

    @route(app, "DELETE", "/clients/{client_id}/credential", guards, 204)
    def revoke_credential(client_id: UUID) -> Response:
        platform.locked_out.add(find(platform.clients, client_id).id)
        return Response(status_code=204)


def _catalogue(app: FastAPI, guards: Guards) -> None:
    @route(app, "GET", "/strategies", guards)
    def strategies() -> list[StrategyInfo]:
        return describe_strategies()

    @route(app, "GET", "/base-models", guards)
    def base_models() -> list[BaseModelInfo]:
        return [
            BaseModelInfo(ref=BaseModelRef(source="builtin", id=name), architecture=shape)
            for name, shape in SHAPES.items()
        ]

    @route(app, "GET", "/builtin-tasks", guards)
    def tasks() -> list[BuiltinTaskInfo]:
        return [BuiltinTaskInfo(name=name, kind=kind) for name, kind in KINDS.items()]


def _federations(app: FastAPI, platform: FakePlatform, guards: Guards) -> None:
    @route(app, "GET", "/federations", guards)
    def federations() -> Page[Federation]:
        items = [
            Federation(
                **item.model_dump(exclude={"clients", "num_runs"}),
                num_runs=sum(run.federation_id == item.id for run in platform.runs),
            )
            for item in platform.federations[::-1]
        ]
        return Page(items=items)

    @route(app, "POST", "/federations", guards, 201)
    def create(body: FederationCreate) -> FederationDetail:
        if any(item.name == body.name for item in platform.federations):
            raise RefusalError(
                409, "conflict", f"There is a federation named {body.name!r} already.",
                [FieldError(field="name", message="choose another name")],
            )  # fmt: skip
        members = [find(platform.clients, client_id) for client_id in body.client_ids]
        return platform.add_federation(body.name, members, body.global_rank)

    @route(app, "GET", "/federations/{federation_id}", guards)
    def federation(federation_id: UUID) -> FederationDetail:
        found: FederationDetail = find(platform.federations, federation_id)
        return found

    @route(app, "POST", "/federations/{federation_id}/runs", guards, 201)
    def create_run(federation_id: UUID, body: RunCreate) -> Run:
        if platform.run_refusal is not None:
            raise platform.run_refusal
        return platform.add_run(find(platform.federations, federation_id), body)

    @route(app, "GET", "/federations/{federation_id}/runs", guards)
    def runs(federation_id: UUID) -> Page[Run]:
        return Page(
            items=[run for run in platform.runs[::-1] if run.federation_id == federation_id]
        )


def _runs(app: FastAPI, platform: FakePlatform, guards: Guards) -> None:
    @route(app, "GET", "/runs/{run_id}", guards)
    def run(run_id: UUID) -> Run:
        found: Run = find(platform.runs, run_id)
        return found

    @route(app, "POST", "/runs/{run_id}/start", guards, 202)
    def start(run_id: UUID) -> Run:
        found = find(platform.runs, run_id)
        platform.event(found, EventKind.RUN_QUEUED, "The run waits for a worker.")
        return platform.change(found, status=RunStatus.QUEUED, started_at=now())

    @route(app, "POST", "/runs/{run_id}/cancel", guards, 202)
    def cancel(run_id: UUID) -> Run:
        return platform.change(
            find(platform.runs, run_id), status=RunStatus.CANCELLED, ended_at=now()
        )

    @route(app, "GET", "/runs/{run_id}/live", guards)
    def live(run_id: UUID, after: int = 0) -> LiveRun:
        platform.live_calls.append(after)
        found = find(platform.runs, run_id)
        metrics = [point for point in platform.metrics[run_id] if point.id > after]
        events = [event for event in platform.events[run_id] if event.id > after]
        rounds = platform.rounds[run_id]
        return LiveRun(
            run=found,
            rounds=rounds if after == 0 else rounds[-1:],
            metrics=metrics,
            events=events,
            refusals=[one for one in platform.refusals if one.run_id == run_id],
            cursor=max([after, *(item.id for item in [*metrics, *events])]),
        )

    @route(app, "GET", "/runs/{run_id}/metrics", guards)
    def metrics(run_id: UUID) -> Page[MetricPoint]:
        return Page(items=platform.metrics[run_id])

    @route(app, "GET", "/runs/{run_id}/adapters", guards)
    def adapters(run_id: UUID) -> Page[Adapter]:
        return Page(items=platform.adapters[run_id])

    @route(app, "GET", "/runs/{run_id}/clients/{client_id}/adapter", guards)
    def adapter(run_id: UUID, client_id: UUID) -> Response:
        return Response(platform.adapter_bytes(find(platform.clients, client_id)))


def three_clinics(platform: FakePlatform) -> FederationDetail:
    """Three clients of three families, ranks and tasks, in one federation."""
    return platform.add_federation(
        "Three clinics",
        [
            platform.add_client("north-clinic", "tiny_llama", 8),
            platform.add_client(
                "city-hospital", "tiny_gemma", 16, task=BuiltinTaskName.ARITHMETIC_CHOICE
            ),
            platform.add_client(
                "south-practice", "tiny_qwen2", 4, task=BuiltinTaskName.STORY_CLASSIFICATION
            ),
        ],
    )


__all__ = ["FakePlatform", "RefusalError", "TaskKind", "make_app", "three_clinics"]
