"""Clients may refuse a run, and may sign their updates with a key of their own."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.create_table(
        "refusals",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("refused_by", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_refusals_client_id_clients")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_refusals_run_id_runs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusals")),
        sa.UniqueConstraint("run_id", "client_id", name=op.f("uq_refusals_run_id_client_id")),
    )
    op.create_index(op.f("ix_refusals_client_id"), "refusals", ["client_id"])
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("public_key", sa.String(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name=op.f("fk_signing_keys_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
        sa.UniqueConstraint(
            "client_id", "fingerprint", name=op.f("uq_signing_keys_client_id_fingerprint")
        ),
    )
    op.add_column("client_updates", sa.Column("signature", sa.String(), nullable=True))
    op.add_column("client_updates", sa.Column("key_fingerprint", sa.String(), nullable=True))
    op.add_column(
        "federations",
        sa.Column("require_signatures", sa.Boolean(), server_default="false", nullable=False),
    )


def downgrade() -> None:
    op.drop_column("federations", "require_signatures")
    op.drop_column("client_updates", "key_fingerprint")
    op.drop_column("client_updates", "signature")
    op.drop_table("signing_keys")
    op.drop_index(op.f("ix_refusals_client_id"), table_name="refusals")
    op.drop_table("refusals")
