"""The dependency that finds out whose traffic a request is, and refuses it above the quota."""

from typing import Annotated, cast
from uuid import UUID

from fastapi import Depends, Request

from backend.auth.dependencies import AnyPrincipal
from backend.auth.principals import ClientPrincipal
from backend.quotas.repository import find_federation
from backend.web.dependencies import DbSession
from backend.web.metering import ACCOUNTS
from backend.web.quotas import Account, Quotas

_NAMED = ("federation_id", "comparison_id", "run_id", "update_id")


def get_quotas(request: Request) -> Quotas | None:
    """The quotas of this application; None without a Redis."""
    return cast(Quotas | None, request.app.state.quotas)


QuotasInUse = Annotated[Quotas | None, Depends(get_quotas)]


def meter(
    request: Request, principal: AnyPrincipal, session: DbSession, quotas: QuotasInUse
) -> None:
    """Counts a request for the client that sent it, and for the federation that it is about.

    Raises:
        QuotaReachedError: one of them has used up its quota.
    """
    if quotas is None:
        return
    accounts = []
    if isinstance(principal, ClientPrincipal):
        accounts.append(Account("client", principal.id, principal.name))
    member = principal.id if isinstance(principal, ClientPrincipal) else None
    federation = _federation(request, session, member)
    if federation is not None:
        accounts.append(federation)
    session.commit()  # no connection waits while a body arrives
    setattr(request.state, ACCOUNTS, accounts)
    quotas.admit(accounts)


def _federation(request: Request, session: DbSession, member: UUID | None) -> Account | None:
    for parameter in _NAMED:
        if parameter in request.path_params:
            try:
                named = UUID(str(request.path_params[parameter]))
            except ValueError:
                return None  # the route says what is wrong with it
            return find_federation(session, parameter, named, member)
    return None


Metered = Depends(meter)
"""For whole routers, after the decision who may call."""
