"""A federation may have probe texts of its own; a run keeps those that it was made with."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("federations", sa.Column("probe_set_sha256", sa.String(), nullable=True))
    op.add_column(
        "federations", sa.Column("probe_set_at", sa.DateTime(timezone=True), nullable=True)
    )
    op.add_column("federations", sa.Column("probe_set_by", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_federations_probe_set_sha256_blobs"),
        "federations",
        "blobs",
        ["probe_set_sha256"],
        ["sha256"],
    )
    op.create_foreign_key(
        op.f("fk_federations_probe_set_by_users"), "federations", "users", ["probe_set_by"], ["id"]
    )
    op.add_column("runs", sa.Column("probe_set_sha256", sa.String(), nullable=True))
    op.create_foreign_key(
        op.f("fk_runs_probe_set_sha256_blobs"), "runs", "blobs", ["probe_set_sha256"], ["sha256"]
    )


def downgrade() -> None:
    op.drop_constraint(op.f("fk_runs_probe_set_sha256_blobs"), "runs", type_="foreignkey")
    op.drop_column("runs", "probe_set_sha256")
    op.drop_constraint(op.f("fk_federations_probe_set_by_users"), "federations", type_="foreignkey")
    op.drop_constraint(
        op.f("fk_federations_probe_set_sha256_blobs"), "federations", type_="foreignkey"
    )
    op.drop_column("federations", "probe_set_by")
    op.drop_column("federations", "probe_set_at")
    op.drop_column("federations", "probe_set_sha256")
