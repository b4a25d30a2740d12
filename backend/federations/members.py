"""The users who work in a federation."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from backend.audit import record_audit
from backend.auth.principals import UserPrincipal
from backend.contracts.common import FieldError
from backend.contracts.federations import FederationMember, FederationMemberAdd
from backend.db import models
from backend.errors import InvalidError, NotFoundError


def list_members(session: Session, federation_id: UUID) -> list[FederationMember]:
    """The users of a federation, by name."""
    rows = session.execute(
        select(models.FederationMember, models.User.username)
        .join(models.User, models.FederationMember.user_id == models.User.id)
        .where(models.FederationMember.federation_id == federation_id)
        .order_by(models.User.username)
    )
    return [_described(member, username) for member, username in rows]


def add_member(
    session: Session, federation_id: UUID, request: FederationMemberAdd, actor: UserPrincipal
) -> FederationMember:
    """Lets a user work in a federation, or gives one who does so another role.

    Raises:
        InvalidError: no such user.
    """
    user = session.scalar(select(models.User).where(models.User.username == request.username))
    if user is None:
        message = f"There is no user {request.username!r}. Ask an administrator to add the user."
        raise InvalidError(
            message,
            code="unknown_user",
            errors=[FieldError(field="username", value=request.username, message=message)],
        )
    member = session.merge(
        models.FederationMember(federation_id=federation_id, user_id=user.id, role=request.role)
    )
    session.flush()
    session.refresh(member)
    record_audit(
        session,
        actor,
        "federation.add_member",
        federation_id,
        username=user.username,
        role=request.role,
    )
    return _described(member, user.username)


def remove_member(
    session: Session, federation_id: UUID, user_id: UUID, actor: UserPrincipal
) -> None:
    """Takes a user out of a federation; administrators still see it.

    Raises:
        NotFoundError: the user is no member.
    """
    member = session.get(models.FederationMember, (federation_id, user_id))
    if member is None:
        raise NotFoundError(f"User {user_id} is no member of federation {federation_id}.")
    session.delete(member)
    record_audit(session, actor, "federation.remove_member", federation_id, user_id=str(user_id))


def _described(member: models.FederationMember, username: str) -> FederationMember:
    return FederationMember(
        user_id=member.user_id,
        username=username,
        role=member.role,
        created_at=member.created_at,
    )
