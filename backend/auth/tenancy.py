"""Whose federation is it? The one place that decides what a user sees and may change.

Administrators see everything. Others see the federations of the whole platform and those of which
they are members, and with each its clients, runs, comparisons and all that these contain; their
role there is the weaker of the platform's and the membership's. A client without a federation is
seen by whoever made its enrolment key, and by the federation to which the key is bound.
What somebody may not see answers as if it were not there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from fastapi import Depends, Request
from sqlalchemy import ColumnElement, exists, false, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from backend.auth.dependencies import AnyPrincipal, require
from backend.auth.principals import UserPrincipal, roles_from
from backend.contracts.enums import Role
from backend.contracts.federations import Visibility
from backend.db.models import (
    Client,
    Comparison,
    EnrolmentKey,
    Federation,
    FederationMember,
    Membership,
    Run,
)
from backend.errors import ForbiddenError, NotFoundError
from backend.web.dependencies import DbSession

_READING = {"GET", "HEAD", "OPTIONS"}


def federations_with(principal: UserPrincipal, role: Role) -> ColumnElement[bool]:
    """A condition on `Federation`: the user has this role, or a stronger one, there."""
    if not principal.has(role):
        return false()
    if principal.sees_everything:
        return true()
    is_member = exists(
        select(FederationMember.user_id).where(
            FederationMember.federation_id == Federation.id,
            FederationMember.user_id == principal.id,
            FederationMember.role.in_(roles_from(role)),
        )
    )
    return or_(Federation.visibility == Visibility.PLATFORM, is_member)


def clients_with(principal: UserPrincipal, role: Role) -> ColumnElement[bool]:
    """A condition on `Client`: the user has this role for it, by a federation or by its key."""
    if not principal.has(role):
        return false()
    if principal.sees_everything:
        return true()
    federations = select(Federation.id).where(federations_with(principal, role))
    in_federation = exists(
        select(Membership.client_id).where(
            Membership.client_id == Client.id, Membership.federation_id.in_(federations)
        )
    )
    by_key = exists(
        select(EnrolmentKey.id).where(
            EnrolmentKey.id == Client.enrolment_key_id, keys_with(principal, role)
        )
    )
    return or_(in_federation, by_key)


def keys_with(principal: UserPrincipal, role: Role) -> ColumnElement[bool]:
    """A condition on `EnrolmentKey`: the user made it, or has the role in its federation."""
    if not principal.has(role):
        return false()
    if principal.sees_everything:
        return true()
    federations = select(Federation.id).where(federations_with(principal, role))
    return or_(EnrolmentKey.created_by == principal.id, EnrolmentKey.federation_id.in_(federations))


def _runs_with(principal: UserPrincipal, role: Role) -> ColumnElement[bool]:
    """A condition on `Run`: that of its federation."""
    return Run.federation_id.in_(select(Federation.id).where(federations_with(principal, role)))


def _comparisons_with(principal: UserPrincipal, role: Role) -> ColumnElement[bool]:
    """A condition on `Comparison`: that of its federation."""
    return Comparison.federation_id.in_(
        select(Federation.id).where(federations_with(principal, role))
    )


@dataclass(frozen=True)
class _Target:
    """Something that an address names, and who has which role for it."""

    parameter: str
    what: str
    key: InstrumentedAttribute[UUID]
    rule: Callable[[UserPrincipal, Role], ColumnElement[bool]]

    def is_open_to(
        self, session: Session, target_id: UUID, principal: UserPrincipal, role: Role
    ) -> bool:
        """True when the user has this role for the target; False as well when there is none."""
        query = select(self.key).where(self.key == target_id, self.rule(principal, role))
        return session.scalar(query) is not None


# The first one that an address has decides: a run's clients are as visible as the run.
_TARGETS = (
    _Target("federation_id", "federation", Federation.id, federations_with),
    _Target("comparison_id", "comparison", Comparison.id, _comparisons_with),
    _Target("run_id", "run", Run.id, _runs_with),
    _Target("client_id", "client", Client.id, clients_with),
    _Target("key_id", "enrolment key", EnrolmentKey.id, keys_with),
)


def guard(request: Request, principal: AnyPrincipal, session: DbSession) -> None:
    """Refuses users what belongs to others, by what the address names; reading or changing.

    Clients pass: what is theirs, the routes for them decide.

    Raises:
        NotFoundError: no such thing, or none that this user may see.
        ForbiddenError: the user sees it but may not change it.
    """
    named = (target for target in _TARGETS if target.parameter in request.path_params)
    target = next(named, None)
    if target is None or not isinstance(principal, UserPrincipal):
        return
    try:
        target_id = UUID(str(request.path_params[target.parameter]))
    except ValueError:
        return  # the route says what is wrong with it
    needed = Role.VIEWER if request.method in _READING else Role.OPERATOR
    require(needed)(principal)
    if not target.is_open_to(session, target_id, principal, needed):
        if target.is_open_to(session, target_id, principal, Role.VIEWER):
            raise ForbiddenError(
                f"You may look at {target.what} {target_id} but not change it: your membership "
                "of the federation is that of a viewer. Ask one of its operators."
            )
        raise NotFoundError(f"There is no {target.what} {target_id}.")
    session.commit()  # no connection waits while a body arrives


Guarded = Depends(guard)
"""For whole routers: no route with an id in its address is reached without the decision."""
