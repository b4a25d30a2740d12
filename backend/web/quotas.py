"""How much clients and federations may call and move, counted in Redis for all API processes.

A window begins with the first request and lasts an hour or a day. Requests are counted when they
come, bytes when the answer has left; so a day's bytes may be exceeded by what was under way. When
Redis is away nothing is counted and everything passes, as with `rate_limits`.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from uuid import UUID

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerHour
from limits.storage import RedisStorage
from redis.exceptions import RedisError

from backend.contracts.quotas import QuotaName, QuotaUse
from backend.errors import QuotaReachedError
from backend.settings import Settings

logger = logging.getLogger(__name__)

_WORDS = {
    QuotaName.REQUESTS_PER_HOUR: "requests an hour",
    QuotaName.BYTES_PER_DAY: "bytes a day",
}
_COUNT_ONLY = 2**62
"""Without a quota usage is counted all the same, so that an administrator can choose one."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose traffic it is."""

    kind: Literal["client", "federation"]
    id: UUID
    name: str


class Quotas:
    """Counts and refuses."""

    def __init__(self, redis_url: str, settings: Settings) -> None:
        self._storage = RedisStorage(redis_url, key_prefix="fedbraid:quotas")
        self._allowed = {
            ("client", QuotaName.REQUESTS_PER_HOUR): settings.client_requests_per_hour,
            ("client", QuotaName.BYTES_PER_DAY): settings.client_bytes_per_day,
            ("federation", QuotaName.REQUESTS_PER_HOUR): settings.federation_requests_per_hour,
            ("federation", QuotaName.BYTES_PER_DAY): settings.federation_bytes_per_day,
        }

    def admit(self, accounts: Sequence[Account]) -> None:
        """Counts one request of each.

        Raises:
            QuotaReachedError: names the quota of the first one that has used it up.
        """
        try:
            for account in accounts:
                self._require(account, QuotaName.REQUESTS_PER_HOUR, cost=1)
                self._require(account, QuotaName.BYTES_PER_DAY, cost=0)
        except (RedisError, OSError) as error:
            logger.warning("quotas are not counted: %s", error)

    def charge(self, accounts: Sequence[Account], num_bytes: int) -> None:
        """Counts the bytes of one request and its answer for each."""
        try:
            for account in accounts:
                item = self._item(account.kind, QuotaName.BYTES_PER_DAY)
                self._storage.incr(item.key_for(str(account.id)), item.get_expiry(), num_bytes)
        except (RedisError, OSError) as error:
            logger.warning("quotas are not counted: %s", error)

    def usage(self, account: Account) -> list[QuotaUse]:
        """What is used of each quota in the window that runs now."""
        return [self._use(account, name) for name in QuotaName]

    def _require(self, account: Account, name: QuotaName, cost: int) -> None:
        item = self._item(account.kind, name)
        key = item.key_for(str(account.id))
        if cost:
            is_left = self._storage.incr(key, item.get_expiry(), cost) <= item.amount
        else:
            is_left = self._storage.get(key) < item.amount
        if is_left:
            return
        wait = max(1, int(self._storage.get_expiry(key) - time.time()) + 1)
        setting = f"FEDBRAID_{account.kind}_{name.value}".upper()
        raise QuotaReachedError(
            f"{account.kind.capitalize()} {account.name} has used up its quota of {item.amount} "
            f"{_WORDS[name]}. Wait {wait} seconds, or ask an administrator to raise {setting}.",
            retry_after_seconds=wait,
        )

    def _use(self, account: Account, name: QuotaName) -> QuotaUse:
        item = self._item(account.kind, name)
        key = item.key_for(str(account.id))
        used, resets = 0, None
        try:
            used = self._storage.get(key)
            if used:
                resets = datetime.fromtimestamp(self._storage.get_expiry(key), UTC)
        except (RedisError, OSError) as error:
            logger.warning("quotas are not read: %s", error)
        allowed = self._allowed[account.kind, name] or None
        return QuotaUse(name=name, used=used, allowed=allowed, resets_at=resets)

    def _item(self, kind: str, name: QuotaName) -> RateLimitItem:
        amount = self._allowed[kind, name] or _COUNT_ONLY
        if name is QuotaName.REQUESTS_PER_HOUR:
            return RateLimitItemPerHour(amount, namespace=kind)
        return RateLimitItemPerDay(amount, namespace=kind)
