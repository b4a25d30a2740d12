"""Runs may pause, go on after a failure, and stop when they have learned enough."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0009"
down_revision: str | None = "0008"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("stop_when", postgresql.JSONB(), nullable=True))
    op.add_column("runs", sa.Column("stopped_after", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "client_updates",
        sa.Column("first_fence", sa.BigInteger(), server_default="0", nullable=False),
    )


def downgrade() -> None:
    op.drop_column("client_updates", "first_fence")
    op.drop_column("runs", "paused_at")
    op.drop_column("runs", "stopped_after")
    op.drop_column("runs", "stop_when")
