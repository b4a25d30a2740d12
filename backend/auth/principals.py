"""Who is acting: a signed-in user, a registered client, or the platform itself."""

from dataclasses import dataclass
from typing import ClassVar
from uuid import UUID

from backend.contracts.enums import Role
from backend.contracts.users import TokenScope

_RANKS = {Role.VIEWER: 0, Role.OPERATOR: 1, Role.ADMINISTRATOR: 2}
_ROLES_OF_SCOPES = {
    TokenScope.READ: Role.VIEWER,
    TokenScope.OPERATE: Role.OPERATOR,
    TokenScope.ADMINISTER: Role.ADMINISTRATOR,
}


def roles_from(role: Role) -> list[Role]:
    """A role and all stronger ones."""
    return [other for other in Role if _RANKS[other] >= _RANKS[role]]


def role_within(role: Role, scope: TokenScope | None) -> Role:
    """The weaker of a user's role and what a personal token's scope allows."""
    if scope is None:
        return role
    return min(role, _ROLES_OF_SCOPES[scope], key=_RANKS.__getitem__)


@dataclass(frozen=True)
class UserPrincipal:
    """A signed-in user; `address` is where the request came from."""

    kind: ClassVar[str] = "user"
    id: UUID
    name: str
    role: Role  # the most that this token allows
    token_id: UUID
    address: str | None
    scope: TokenScope | None = None  # of a personal token; None: a session
    person_role: Role | None = None  # whatever the token's scope; None: as `role`

    @property
    def sees_everything(self) -> bool:
        """True for administrators, also where their token only reads."""
        return (self.person_role or self.role) is Role.ADMINISTRATOR

    def has(self, role: Role) -> bool:
        """True when the user may do what `role` may: each role includes the weaker ones."""
        return _RANKS[self.role] >= _RANKS[role]


@dataclass(frozen=True)
class ClientPrincipal:
    """A registered client that sent its credential."""

    kind: ClassVar[str] = "client"
    id: UUID
    name: str
    token_id: UUID
    address: str | None


@dataclass(frozen=True)
class SystemPrincipal:
    """The platform itself, or somebody at its command line."""

    kind: ClassVar[str] = "system"
    id: None = None
    name: str = "system"
    address: None = None


Principal = UserPrincipal | ClientPrincipal
"""Whoever may call the API."""

Actor = UserPrincipal | ClientPrincipal | SystemPrincipal
"""Whoever may change something."""
