"""Counts the bytes of requests and answers for the accounts that a request turned out to have."""

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.web.quotas import Quotas

ACCOUNTS = "quota_accounts"
"""Key of the request's state under which `backend.quotas.metered` leaves the accounts."""


class Metering:
    """Charges each account with the bodies that came and went."""

    def __init__(self, app: ASGIApp, quotas: Quotas) -> None:
        self._app = app
        self._quotas = quotas

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one ASGI event stream."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        num_bytes = 0

        async def counted_receive() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal num_bytes
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            accounts = scope.get("state", {}).get(ACCOUNTS, ())
            if accounts and num_bytes:
                await run_in_threadpool(self._quotas.charge, accounts, num_bytes)
