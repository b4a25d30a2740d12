"""Limits on how often one token and one address may call, counted in Redis for all API processes.

When Redis is away requests pass: a platform whose limits stand in the way of its work is worse
than one without them for a minute, and passwords have a lock of their own in the database.
"""

import hashlib
import logging
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.web.problems import problem_response

logger = logging.getLogger(__name__)

SIGN_IN_PATH = "/api/v1/sessions"


class RateLimits:
    """Answers 429 with Retry-After above the limits; health checks are free."""

    def __init__(
        self,
        app: ASGIApp,
        pool: ConnectionPool,
        *,
        per_token: int,
        per_address: int,
        sign_ins_per_address: int,
    ) -> None:
        self._app = app
        storage = RedisStorage(
            "async+redis://",  # where it is, the pool knows
            implementation="redispy",
            key_prefix="fedbraid:limits",
            connection_pool=pool,  # type: ignore[arg-type]  # too narrow a hint there
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._per_token = RateLimitItemPerMinute(per_token, namespace="token")
        self._per_address = RateLimitItemPerMinute(per_address, namespace="address")
        self._sign_ins = RateLimitItemPerMinute(sign_ins_per_address, namespace="sign-in")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI event stream."""
        if scope["type"] == "http" and scope["path"].startswith("/api/"):
            exceeded = await self._exceeded(scope)
            if exceeded is not None:
                item, wait = exceeded
                what = {"token": "with this token", "address": "from this address"}
                await problem_response(
                    429,
                    "too_many_requests",
                    f"More than {item.amount} requests a minute "
                    f"{what.get(item.namespace, 'to sign in from this address')}. Wait {wait} "
                    "seconds; an administrator can raise the limit.",
                    headers={"Retry-After": str(wait)},
                )(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _exceeded(self, scope: Scope) -> tuple[RateLimitItemPerMinute, int] | None:
        """The limit that this request breaks, with the seconds to wait; None: it may pass."""
        try:
            for item, key in self._counted(scope):
                if not await self._limiter.hit(item, key):
                    stats = await self._limiter.get_window_stats(item, key)
                    return item, max(1, int(stats.reset_time - time.time()) + 1)
        except (RedisError, OSError) as error:
            logger.warning("rate limits are not counted: %s", error)
        return None

    def _counted(self, scope: Scope) -> list[tuple[RateLimitItemPerMinute, str]]:
        client = scope.get("client")
        address = client[0] if client else "unknown"
        counted = [(self._per_address, address)]
        if scope["method"] == "POST" and scope["path"] == SIGN_IN_PATH:
            counted.append((self._sign_ins, address))
        authorization = Headers(scope=scope).get("authorization")
        if authorization:
            digest = hashlib.sha256(authorization.encode("utf-8", "surrogatepass")).hexdigest()
            counted.append((self._per_token, digest))
        return counted
