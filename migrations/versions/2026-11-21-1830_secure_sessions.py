"""Secure aggregation: the exchanges of a round, step by step."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "secure_sessions",
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.String(length=40), nullable=False),
        sa.Column("threshold", sa.BigInteger(), nullable=False),
        sa.Column(
            "step_since",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_secure_sessions_round_id_rounds")
        ),
        sa.PrimaryKeyConstraint("round_id", name=op.f("pk_secure_sessions")),
    )
    op.create_table(
        "secure_parties",
        sa.Column("client_update_id", sa.Uuid(), nullable=False),
        sa.Column("cipher_key", sa.String(), nullable=False),
        sa.Column("mask_key", sa.String(), nullable=False),
        sa.Column("shares", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("revealed", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_update_id"],
            ["client_updates.id"],
            name=op.f("fk_secure_parties_client_update_id_client_updates"),
        ),
        sa.PrimaryKeyConstraint("client_update_id", name=op.f("pk_secure_parties")),
    )


def downgrade() -> None:
    op.drop_table("secure_parties")
    op.drop_table("secure_sessions")
