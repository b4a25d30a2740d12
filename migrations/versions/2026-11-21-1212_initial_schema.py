"""The first schema: everything."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: str | Sequence[str] | None = None
depends_on: str | Sequence[str] | None = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence("journal_seq")))
    op.create_table(
        "audit_entries",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("actor_kind", sa.String(), nullable=False),
        sa.Column("actor_id", sa.Uuid(), nullable=True),
        sa.Column("actor_name", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object_id", sa.Uuid(), nullable=True),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column("address", sa.String(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_actor_id", "audit_entries", ["actor_id"])
    op.create_index("ix_audit_entries_object_id", "audit_entries", ["object_id"])
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("media_type", sa.String(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("sha256", name="pk_blobs"),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("username", sa.String(), nullable=False),
        sa.Column("password_hash", sa.String(), nullable=False),
        sa.Column("role", sa.String(40), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.UniqueConstraint("username", name="uq_users_username"),
    )
    op.create_table(
        "enrolment_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("max_uses", sa.BigInteger(), nullable=False),
        sa.Column("num_uses", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("num_uses <= max_uses", name="ck_enrolment_keys_uses_within_limit"),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name="fk_enrolment_keys_created_by_users"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_enrolment_keys"),
        sa.UniqueConstraint("secret_hash", name="uq_enrolment_keys_secret_hash"),
    )
    op.create_table(
        "federations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("global_rank", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["created_by"], ["users.id"], name="fk_federations_created_by_users"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_federations"),
        sa.UniqueConstraint("name", name="uq_federations_name"),
    )
    op.create_table(
        "clients",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("execution", sa.String(40), nullable=False),
        sa.Column("base_model", postgresql.JSONB(), nullable=False),
        sa.Column("architecture", postgresql.JSONB(), nullable=False),
        sa.Column("lora_rank", sa.BigInteger(), nullable=False),
        sa.Column("lora_alpha", sa.Double(), nullable=False),
        sa.Column("task", sa.String(40), nullable=False),
        sa.Column("dataset", postgresql.JSONB(none_as_null=True), nullable=True),
        sa.Column("enrolment_key_id", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["enrolment_key_id"],
            ["enrolment_keys.id"],
            name="fk_clients_enrolment_key_id_enrolment_keys",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_clients"),
        sa.UniqueConstraint("name", name="uq_clients_name"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("federation_id", sa.Uuid(), nullable=False),
        sa.Column("strategy", postgresql.JSONB(), nullable=False),
        sa.Column("training", postgresql.JSONB(), nullable=False),
        sa.Column("num_rounds", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("round_number", sa.BigInteger(), nullable=False),
        sa.Column("state_sha256", sa.String(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["created_by"], ["users.id"], name="fk_runs_created_by_users"),
        sa.ForeignKeyConstraint(
            ["federation_id"], ["federations.id"], name="fk_runs_federation_id_federations"
        ),
        sa.ForeignKeyConstraint(
            ["state_sha256"], ["blobs.sha256"], name="fk_runs_state_sha256_blobs"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_federation_id", "runs", ["federation_id"])
    op.create_index("ix_runs_status", "runs", ["status"])
    op.create_table(
        "events",
        sa.Column(
            "id", sa.BigInteger(), server_default=sa.text("nextval('journal_seq')"), nullable=False
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("round_number", sa.BigInteger(), nullable=True),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_events_client_id_clients"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_events_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_run_id_id", "events", ["run_id", "id"])
    op.create_table(
        "memberships",
        sa.Column("federation_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column(
            "joined_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name="fk_memberships_client_id_clients"
        ),
        sa.ForeignKeyConstraint(
            ["federation_id"], ["federations.id"], name="fk_memberships_federation_id_federations"
        ),
        sa.PrimaryKeyConstraint("federation_id", "client_id", name="pk_memberships"),
    )
    op.create_index("ix_memberships_client_id", "memberships", ["client_id"])
    op.create_table(
        "metrics",
        sa.Column(
            "id", sa.BigInteger(), server_default=sa.text("nextval('journal_seq')"), nullable=False
        ),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column("round_number", sa.BigInteger(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_metrics_client_id_clients"),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_metrics_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_metrics"),
    )
    op.create_index("ix_metrics_run_id_id", "metrics", ["run_id", "id"])
    op.create_table(
        "rounds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("run_id", sa.Uuid(), nullable=False),
        sa.Column("round_number", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.Column(
            "opened_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False
        ),
        sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name="fk_rounds_run_id_runs"),
        sa.PrimaryKeyConstraint("id", name="pk_rounds"),
        sa.UniqueConstraint("run_id", "round_number", name="uq_rounds_run_id_round_number"),
    )
    op.create_index("ix_rounds_status", "rounds", ["status"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("secret_hash", sa.String(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=True),
        sa.Column("client_id", sa.Uuid(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(user_id IS NULL) <> (client_id IS NULL)", name="ck_tokens_one_owner"),
        sa.ForeignKeyConstraint(["client_id"], ["clients.id"], name="fk_tokens_client_id_clients"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_tokens_user_id_users"),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("secret_hash", name="uq_tokens_secret_hash"),
    )
    op.create_index("ix_tokens_client_id", "tokens", ["client_id"])
    op.create_index("ix_tokens_user_id", "tokens", ["user_id"])
    op.create_table(
        "client_updates",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("round_id", sa.Uuid(), nullable=False),
        sa.Column("client_id", sa.Uuid(), nullable=False),
        sa.Column("status", sa.String(40), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("lease_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("enqueued_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("stage", sa.String(), nullable=True),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("num_steps", sa.BigInteger(), nullable=False),
        sa.Column("plan_sha256", sa.String(), nullable=False),
        sa.Column("shared_sha256", sa.String(), nullable=True),
        sa.Column("private_sha256", sa.String(), nullable=True),
        sa.Column("adapter_sha256", sa.String(), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["adapter_sha256"], ["blobs.sha256"], name="fk_client_updates_adapter_sha256_blobs"
        ),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.id"], name="fk_client_updates_client_id_clients"
        ),
        sa.ForeignKeyConstraint(
            ["plan_sha256"], ["blobs.sha256"], name="fk_client_updates_plan_sha256_blobs"
        ),
        sa.ForeignKeyConstraint(
            ["private_sha256"], ["blobs.sha256"], name="fk_client_updates_private_sha256_blobs"
        ),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name="fk_client_updates_round_id_rounds"
        ),
        sa.ForeignKeyConstraint(
            ["shared_sha256"], ["blobs.sha256"], name="fk_client_updates_shared_sha256_blobs"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_client_updates"),
        sa.UniqueConstraint("round_id", "client_id", name="uq_client_updates_round_id_client_id"),
    )
    op.create_index("ix_client_updates_client_id", "client_updates", ["client_id"])
    op.create_index("ix_client_updates_status", "client_updates", ["status"])
    op.create_table(
        "attempts",
        sa.Column("client_update_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(), nullable=False),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "heartbeat_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("outcome", sa.String(40), nullable=True),
        sa.Column("error", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_update_id"],
            ["client_updates.id"],
            name="fk_attempts_client_update_id_client_updates",
        ),
        sa.PrimaryKeyConstraint("client_update_id", "number", name="pk_attempts"),
    )


def downgrade() -> None:
    op.drop_table("attempts")
    op.drop_index("ix_client_updates_status", table_name="client_updates")
    op.drop_index("ix_client_updates_client_id", table_name="client_updates")
    op.drop_table("client_updates")
    op.drop_index("ix_tokens_user_id", table_name="tokens")
    op.drop_index("ix_tokens_client_id", table_name="tokens")
    op.drop_table("tokens")
    op.drop_index("ix_rounds_status", table_name="rounds")
    op.drop_table("rounds")
    op.drop_index("ix_metrics_run_id_id", table_name="metrics")
    op.drop_table("metrics")
    op.drop_index("ix_memberships_client_id", table_name="memberships")
    op.drop_table("memberships")
    op.drop_index("ix_events_run_id_id", table_name="events")
    op.drop_table("events")
    op.drop_index("ix_runs_status", table_name="runs")
    op.drop_index("ix_runs_federation_id", table_name="runs")
    op.drop_table("runs")
    op.drop_table("clients")
    op.drop_table("federations")
    op.drop_table("enrolment_keys")
    op.drop_table("users")
    op.drop_table("blobs")
    op.drop_index("ix_audit_entries_object_id", table_name="audit_entries")
    op.drop_index("ix_audit_entries_actor_id", table_name="audit_entries")
    op.drop_table("audit_entries")
    op.execute(sa.schema.DropSequence(sa.Sequence("journal_seq")))
