"""Comparisons own runs: one for each arm and seed."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "comparisons",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("federation_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("arms", postgresql.JSONB(), nullable=False),
        sa.Column("seeds", postgresql.JSONB(), nullable=False),
        sa.Column("training", postgresql.JSONB(), nullable=False),
        sa.Column("num_rounds", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["federation_id"], ["federations.id"], name="fk_comparisons_federation_id_federations"
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name="fk_comparisons_created_by_users"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
    )
    op.create_index("ix_comparisons_federation_id", "comparisons", ["federation_id"])
    op.add_column("runs", sa.Column("comparison_id", sa.Uuid(), nullable=True))
    op.add_column("runs", sa.Column("arm", sa.String(), nullable=True))
    op.create_foreign_key(
        "fk_runs_comparison_id_comparisons", "runs", "comparisons", ["comparison_id"], ["id"]
    )
    op.create_unique_constraint(
        "uq_runs_comparison_id_arm_seed", "runs", ["comparison_id", "arm", "seed"]
    )


def downgrade() -> None:
    op.drop_constraint("uq_runs_comparison_id_arm_seed", "runs", type_="unique")
    op.drop_constraint("fk_runs_comparison_id_comparisons", "runs", type_="foreignkey")
    op.drop_column("runs", "arm")
    op.drop_column("runs", "comparison_id")
    op.drop_index("ix_comparisons_federation_id", "comparisons")
    op.drop_table("comparisons")
