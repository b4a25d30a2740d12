"""Enrolment keys may be bound to a federation, and may let clients wait for approval."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("enrolment_keys", sa.Column("federation_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_enrolment_keys_federation_id_federations"),
        "enrolment_keys",
        "federations",
        ["federation_id"],
        ["id"],
    )
    op.add_column(
        "enrolment_keys",
        sa.Column("requires_approval", sa.Boolean(), server_default="false", nullable=False),
    )
    op.add_column(
        "clients", sa.Column("is_pending", sa.Boolean(), server_default="false", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("clients", "is_pending")
    op.drop_column("enrolment_keys", "requires_approval")
    op.drop_constraint(op.f("fk_enrolment_keys_federation_id_federations"), "enrolment_keys")
    op.drop_column("enrolment_keys", "federation_id")
