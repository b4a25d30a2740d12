"""How long a federation keeps updates, how much it may store, and runs that were imported."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("federations", sa.Column("quota_bytes", sa.BigInteger(), nullable=True))
    op.add_column("federations", sa.Column("retention_days", sa.Float(), nullable=True))
    op.add_column("federations", sa.Column("retention_rounds", sa.BigInteger(), nullable=True))
    op.add_column("runs", sa.Column("cleared_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("runs", sa.Column("copied_from", sa.Uuid(), nullable=True))
    op.alter_column("client_updates", "plan_sha256", nullable=True)


def downgrade() -> None:
    # Refused by the database once a plan was removed: only a backup has it.
    op.alter_column("client_updates", "plan_sha256", nullable=False)
    op.drop_column("runs", "copied_from")
    op.drop_column("runs", "cleared_at")
    op.drop_column("federations", "retention_rounds")
    op.drop_column("federations", "retention_days")
    op.drop_column("federations", "quota_bytes")
