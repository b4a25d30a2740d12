"""Rounds may close without everybody; an update says which round used it."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0008"
down_revision: str | None = "0007"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    policy = sa.Column("round_policy", postgresql.JSONB(), server_default="{}", nullable=False)
    op.add_column("runs", policy)
    op.add_column("rounds", sa.Column("quorum", sa.BigInteger(), nullable=True))
    op.add_column("rounds", sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "rounds", sa.Column("is_overdue", sa.Boolean(), server_default="false", nullable=False)
    )
    op.add_column("client_updates", sa.Column("aggregated_in", sa.BigInteger(), nullable=True))
    op.add_column("client_updates", sa.Column("late_at", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE client_updates SET aggregated_in = rounds.round_number FROM rounds "
        "WHERE rounds.id = client_updates.round_id AND client_updates.status = 'accepted' "
        "AND rounds.status IN ('aggregating', 'closed')"
    )


def downgrade() -> None:
    op.drop_column("client_updates", "late_at")
    op.drop_column("client_updates", "aggregated_in")
    op.drop_column("rounds", "is_overdue")
    op.drop_column("rounds", "deadline_at")
    op.drop_column("rounds", "quorum")
    op.drop_column("runs", "round_policy")
