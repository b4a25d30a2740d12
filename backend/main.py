"""The web application: `uvicorn backend.main:create_app --factory`."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib.metadata import version
from typing import Any

from anyio.to_thread import current_default_thread_limiter
from fastapi import APIRouter, FastAPI
from redis.asyncio import ConnectionPool

from backend.account.routes import router as account
from backend.archives.routes import router as archives
from backend.audit_trail.routes import router as audit
from backend.auth.tenancy import Guarded
from backend.base_models.routes import router as base_models
from backend.clients.routes import registration
from backend.clients.routes import router as clients
from backend.comparisons.routes import router as comparisons
from backend.contracts.common import Problem
from backend.datasets.routes import router as datasets
from backend.db.session import create_database_engine, create_session_factory
from backend.events.routes import router as events
from backend.federation_storage.routes import router as federation_storage
from backend.federations.routes import router as federations
from backend.health.routes import router as health
from backend.logging import configure_logging
from backend.metrics.routes import router as metrics
from backend.oidc.routes import router as oidc
from backend.probe_sets.routes import router as probe_sets
from backend.quotas.metered import Metered
from backend.quotas.routes import router as quotas
from backend.refusals.routes import router as refusals
from backend.runs.control_routes import router as run_control
from backend.runs.routes import router as runs
from backend.secure_aggregation.routes import router as secure_aggregation
from backend.sessions.routes import router as sessions
from backend.settings import Settings, get_settings
from backend.signatures.routes import router as signatures
from backend.storage import open_blob_store, open_direct_transfers
from backend.strategies.routes import router as strategies
from backend.updates.routes import router as agent
from backend.users.routes import router as users
from backend.web.metering import Metering
from backend.web.middleware import DOCS_PATH, BodyLimit, RequestContext
from backend.web.problems import COMMON_PROBLEMS, add_problem_handlers
from backend.web.prometheus import RequestMetrics
from backend.web.quotas import Quotas
from backend.web.rate_limits import RateLimits

PREFIX = "/api/v1"
MAX_THREADS = 512
"""A request that holds a row lock needs a thread once more before it commits, to write its answer.
With fewer threads than requests that wait for that lock it would never get one."""
_ROUTERS = (sessions, oidc, account, users, audit, registration, base_models, strategies)
_AGENT_ROUTERS = (agent, secure_aggregation)
_TENANT_ROUTERS = (
    clients,
    datasets,
    federations,
    federation_storage,
    probe_sets,
    archives,
    runs,
    run_control,
    comparisons,
    metrics,
    events,
    refusals,
    signatures,
    quotas,
)
"""What belongs to a federation: every route of these goes through `backend.auth.tenancy`."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application, connected to the configured services when it starts.

    Args:
        settings: default: those of the environment.

    Raises:
        ValueError: no database or no blob store is configured.
    """
    settings = settings or get_settings()
    configure_logging(settings.log_level)
    app = FastAPI(
        title="FedBraid",
        summary="Federated fine-tuning of foundation models that differ in everything.",
        version=version("fedbraid"),
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=DOCS_PATH,
        redoc_url=None,  # one page is enough, and each needs a policy of its own
        lifespan=_connection(settings),
    )
    request_metrics = RequestMetrics()
    app.state.settings = settings
    app.state.request_metrics = request_metrics
    # These limit themselves.
    large = ("/dataset", "/shared", "/content", "/probe-set", "/federations/import")
    app.add_middleware(BodyLimit, exempt_suffixes=large)
    app.state.quotas = None
    if settings.redis_url is not None:
        app.state.quotas = Quotas(settings.redis_url.get_secret_value(), settings)
        app.add_middleware(Metering, quotas=app.state.quotas)
        app.state.limits_pool = ConnectionPool.from_url(settings.redis_url.get_secret_value())
        app.add_middleware(
            RateLimits,
            pool=app.state.limits_pool,
            per_token=settings.requests_per_minute,
            per_address=settings.requests_per_minute_per_address,
            sign_ins_per_address=settings.sign_ins_per_minute_per_address,
        )
    app.add_middleware(RequestContext, metrics=request_metrics)  # added last: outermost
    add_problem_handlers(app)
    app.include_router(_api())
    app.include_router(health)
    app.openapi = _with_problem_schema(app.openapi)  # type: ignore[method-assign]
    return app


def _api() -> APIRouter:
    """All routes; what is not for everybody is guarded first, then metered."""
    api = APIRouter(prefix=PREFIX, responses=COMMON_PROBLEMS)
    for router in _ROUTERS:
        api.include_router(router)
    for router in _AGENT_ROUTERS:
        api.include_router(router, dependencies=[Metered])
    for router in _TENANT_ROUTERS:
        api.include_router(router, dependencies=[Guarded, Metered])
    return api


def _connection(settings: Settings) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """What the application holds while it runs.

    Raises:
        ValueError: no database or no blob store is configured.
    """
    if settings.database_url is None or settings.blob_url is None:
        raise ValueError(
            "DATABASE_URL and BLOB_URL must both be set; start through `fedbraid up` or set them"
        )
    database_url, blob_url = settings.database_url.get_secret_value(), settings.blob_url

    @asynccontextmanager
    async def connect(app: FastAPI) -> AsyncIterator[None]:
        current_default_thread_limiter().total_tokens = MAX_THREADS
        engine = create_database_engine(database_url)
        app.state.session_factory = create_session_factory(engine)
        app.state.blob_store = open_blob_store(blob_url)
        app.state.direct_transfers = open_direct_transfers(settings)
        yield
        if settings.redis_url is not None:
            await app.state.limits_pool.aclose()
        engine.dispose()

    return connect


def _with_problem_schema(describe: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Adds the schema of problem details, to which the declared errors refer."""

    def openapi() -> dict[str, Any]:
        document = describe()
        schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = document["components"]["schemas"]
        schemas.update(schema.pop("$defs", {}))
        schemas["Problem"] = schema
        return document

    return openapi
