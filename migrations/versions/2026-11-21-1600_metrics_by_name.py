"""Comparisons read few of the values of many runs: an index of those that count for a round."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_index(
        "ix_metrics_run_id_name",
        "metrics",
        ["run_id", "name"],
        postgresql_where=sa.text("step IS NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_metrics_run_id_name", "metrics")
