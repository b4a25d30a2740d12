"""Users belong to federations; those that exist stay visible to everybody."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0007"
down_revision: str | None = "0006"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column(
        "federations",
        sa.Column("visibility", sa.String(length=40), server_default="platform", nullable=False),
    )
    op.create_table(
        "federation_members",
        sa.Column("federation_id", sa.Uuid(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(length=40), nullable=False),
        sa.Column(
            "created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["federation_id"],
            ["federations.id"],
            name=op.f("fk_federation_members_federation_id_federations"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_federation_members_user_id_users")
        ),
        sa.PrimaryKeyConstraint("federation_id", "user_id", name=op.f("pk_federation_members")),
    )
    op.create_index(op.f("ix_federation_members_user_id"), "federation_members", ["user_id"])
    op.execute(
        "INSERT INTO federation_members (federation_id, user_id, role) "
        "SELECT id, created_by, 'operator' FROM federations"
    )


def downgrade() -> None:
    op.drop_table("federation_members")
    op.drop_column("federations", "visibility")
