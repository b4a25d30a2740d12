"""Accounts: lockout, second factor, personal tokens, sign-in services, disabled users."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "sign_in_failures",
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("num_failures", sa.BigInteger(), nullable=False),
        sa.Column(
            "last_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("username", name=op.f("pk_sign_in_failures")),
    )
    op.alter_column("users", "password_hash", nullable=True)
    op.add_column("users", sa.Column("disabled_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("users", sa.Column("oidc_subject", sa.String(), nullable=True))
    op.add_column("users", sa.Column("totp_secret", sa.String(), nullable=True))
    op.add_column(
        "users", sa.Column("totp_confirmed_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("users", sa.Column("totp_last_step", sa.BigInteger(), nullable=True))
    op.add_column(
        "users",
        sa.Column("recovery_hashes", sa.ARRAY(sa.String()), server_default="{}", nullable=False),
    )
    op.create_unique_constraint(op.f("uq_users_oidc_subject"), "users", ["oidc_subject"])
    op.add_column("tokens", sa.Column("name", sa.String(), nullable=True))
    op.add_column("tokens", sa.Column("scope", sa.String(length=40), nullable=True))
    op.add_column("tokens", sa.Column("address", sa.String(), nullable=True))
    op.add_column("tokens", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    # The trail of changes is only ever added to, whoever has the database's password.
    op.execute(
        """
        CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'audit_entries is append-only';
        END $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER audit_entries_append_only BEFORE UPDATE OR DELETE OR TRUNCATE
        ON audit_entries
        FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()
        """
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER audit_entries_append_only ON audit_entries")
    op.execute("DROP FUNCTION refuse_change()")
    for column in ("last_used_at", "address", "scope", "name"):
        op.drop_column("tokens", column)
    op.drop_constraint(op.f("uq_users_oidc_subject"), "users")
    for column in (
        *("recovery_hashes", "totp_last_step", "totp_confirmed_at", "totp_secret"),
        *("oidc_subject", "disabled_at"),
    ):
        op.drop_column("users", column)
    op.execute("UPDATE users SET password_hash = '' WHERE password_hash IS NULL")
    op.alter_column("users", "password_hash", nullable=False)
    op.drop_table("sign_in_failures")
