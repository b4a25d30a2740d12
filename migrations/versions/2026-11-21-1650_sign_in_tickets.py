"""Tickets of people who signed in with a sign-in service."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "sign_in_tickets",
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_sign_in_tickets_user_id_users")
        ),
        sa.PrimaryKeyConstraint("secret_hash", name=op.f("pk_sign_in_tickets")),
    )


def downgrade() -> None:
    op.drop_table("sign_in_tickets")
