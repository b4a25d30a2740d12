"""Remote clients declare the shapes of their modules and the number of their training rows."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.add_column("clients", sa.Column("modules", postgresql.JSONB(), nullable=True))
    op.add_column("clients", sa.Column("num_examples", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("clients", "num_examples")
    op.drop_column("clients", "modules")
