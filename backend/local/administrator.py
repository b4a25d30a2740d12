"""The first administrator of an empty platform, and where the password is."""

import secrets
from pathlib import Path

from backend.db.session import create_database_engine, create_session_factory
from backend.local.errors import LocalError
from backend.settings import Settings
from backend.users import service

USERNAME = "admin"


def password_path(settings: Settings) -> Path:
    """The file of a generated password."""
    return settings.home / "admin-password"


def ensure_administrator(settings: Settings, database_url: str) -> bool:
    """Creates the administrator when the platform has no user yet; says whether it did.

    A generated password is stored before the user is, so that it cannot get lost in between.
    """
    engine = create_database_engine(database_url)
    try:
        with create_session_factory(engine)() as session:
            if service.list_users(session, None, 1).items:
                return False
            created = service.ensure_administrator(session, USERNAME, _chosen_password(settings))
            session.commit()
            return created
    finally:
        engine.dispose()


def known_password(settings: Settings) -> str:
    """The administrator's password as far as this machine knows it.

    Raises:
        LocalError: it was neither set nor generated here.
    """
    if settings.admin_password is not None:
        return settings.admin_password.get_secret_value()
    path = password_path(settings)
    if not path.exists():
        raise LocalError(
            f"the password of {USERNAME} is not known here ({path} is missing): "
            "set FEDBRAID_ADMIN_PASSWORD"
        )
    return path.read_text(encoding="utf-8").strip()


def _chosen_password(settings: Settings) -> str:
    path = password_path(settings)
    if settings.admin_password is None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(18) + "\n", encoding="utf-8")
    return known_password(settings)
