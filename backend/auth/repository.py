"""SQL of bearer tokens."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, func, or_, select, update
from sqlalchemy.orm import Session

from backend.db.models import Client, Token, User

_SEEN_INTERVAL = timedelta(seconds=5)


def find_token(
    session: Session, secret_hash: str
) -> tuple[Token, User | None, Client | None, bool] | None:
    """The token of a secret with its owner, and whether it has expired by the database's clock."""
    row = session.execute(
        select(Token, User, Client, func.coalesce(Token.expires_at <= func.now(), False))
        .outerjoin(User, Token.user_id == User.id)
        .outerjoin(Client, Token.client_id == Client.id)
        .where(Token.secret_hash == secret_hash)
    ).first()
    return (row[0], row[1], row[2], row[3]) if row else None


def touch_client(session: Session, client_id: UUID) -> None:
    """Moves `last_seen_at`, at most once per few seconds to spare the disk."""
    session.execute(
        update(Client)
        .where(
            Client.id == client_id,
            or_(Client.last_seen_at.is_(None), Client.last_seen_at < func.now() - _SEEN_INTERVAL),
        )
        .values(last_seen_at=func.now())
        .execution_options(synchronize_session=False)
    )


def touch_token(session: Session, token_id: UUID) -> None:
    """Moves `last_used_at`, at most once per few seconds to spare the disk."""
    session.execute(
        update(Token)
        .where(
            Token.id == token_id,
            or_(Token.last_used_at.is_(None), Token.last_used_at < func.now() - _SEEN_INTERVAL),
        )
        .values(last_used_at=func.now())
        .execution_options(synchronize_session=False)
    )


def live_tokens(user_id: UUID) -> Select[Token]:
    """The tokens of a user that count: sessions and personal ones."""
    return select(Token).where(
        Token.user_id == user_id, Token.revoked_at.is_(None), Token.expires_at > func.now()
    )


def revoke_token(session: Session, token_id: UUID) -> None:
    """Ends one token."""
    _revoke(session, Token.id == token_id)


def revoke_user_token(session: Session, user_id: UUID, token_id: UUID) -> bool:
    """Ends one token if it is this user's and counts still; says whether it was."""
    return _revoke(session, (Token.id == token_id) & (Token.user_id == user_id)) > 0


def revoke_user_tokens(session: Session, user_id: UUID, spare: UUID | None = None) -> int:
    """Ends all sessions and personal tokens of a user but one; gives how many there were."""
    others = Token.user_id == user_id
    return _revoke(session, others if spare is None else others & (Token.id != spare))


def revoke_client_tokens(session: Session, client_id: UUID) -> int:
    """Ends all credentials of a client; gives how many there were."""
    return _revoke(session, Token.client_id == client_id)


def _revoke(session: Session, condition: ColumnElement[bool]) -> int:
    revoked = session.scalars(
        update(Token)
        .where(condition, Token.revoked_at.is_(None))
        .values(revoked_at=func.now())
        .returning(Token.id)
    ).all()
    return len(revoked)
