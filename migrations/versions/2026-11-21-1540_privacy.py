"""Runs say how clients protect what they send."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    column = sa.Column("privacy", postgresql.JSONB(), server_default="{}", nullable=False)
    op.add_column("runs", column)


def downgrade() -> None:
    op.drop_column("runs", "privacy")
