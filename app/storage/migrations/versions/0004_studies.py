"""studies."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

_ID = sa.String(length=30)
_TIME = sa.Float(precision=53)


def _document(name: str, *, nullable: bool) -> sa.Column[object]:
    kind = sa.JSON(none_as_null=True).with_variant(
        postgresql.JSONB(none_as_null=True), "postgresql"
    )
    return sa.Column(name, kind, nullable=nullable)


def _job_columns() -> list[sa.Column[object]]:
    return [
        sa.Column("id", _ID, nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.String(length=200), nullable=True),
        sa.Column("lease_expires_at", _TIME, nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("killed", sa.Boolean(), nullable=False),
        sa.Column("sent_at", _TIME, nullable=True),
        sa.Column("progress_done", sa.BigInteger(), nullable=False),
        sa.Column("progress_total", sa.BigInteger(), nullable=True),
        sa.Column("progress_unit", sa.String(length=20), nullable=True),
        _document("error", nullable=True),
        _document("warnings", nullable=False),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("started_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
    ]


def _of_study(table: str) -> sa.ForeignKeyConstraint:
    name = op.f(f"fk_{table}_study_id")
    return sa.ForeignKeyConstraint(["study_id"], ["studies.id"], name=name, ondelete="CASCADE")


def upgrade() -> None:
    # Events may belong to a study, so they have no foreign key to merges.
    with op.batch_alter_table("events") as events:
        events.drop_constraint(op.f("fk_events_merge_id"), type_="foreignkey")
        events.alter_column("merge_id", new_column_name="topic")
    op.create_table(
        "studies",
        *_job_columns(),
        sa.Column("name", sa.String(length=200), nullable=True),
        sa.Column("phase", sa.String(length=20), nullable=True),
        sa.Column("phase_started_at", _TIME, nullable=True),
        _document("request", nullable=False),
        _document("sources", nullable=False),
        sa.Column("trials", sa.Integer(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=True),
        sa.Column("device_type", sa.String(length=20), nullable=True),
        _document("outcome", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_studies")),
    )
    op.create_index("ix_studies_created_at_id", "studies", ["created_at", "id"])
    for column in ("name", "status"):
        op.create_index(op.f(f"ix_studies_{column}"), "studies", [column])
    op.create_table(
        "study_trials",
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("batch", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.Integer(), nullable=False),
        _document("point", nullable=False),
        _document("recipe", nullable=False),
        sa.Column("status", sa.String(length=12), nullable=False),
        sa.Column("rungs", sa.Integer(), nullable=False),
        _document("scores", nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("merge_id", _ID, nullable=True),
        sa.Column("created_at", _TIME, nullable=False),
        sa.Column("finished_at", _TIME, nullable=True),
        _of_study("study_trials"),
        sa.PrimaryKeyConstraint("study_id", "number", name=op.f("pk_study_trials")),
    )
    op.create_table(
        "study_pieces",
        *_job_columns(),
        sa.Column("study_id", _ID, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("system", sa.String(length=120), nullable=False),
        sa.Column("dataset", sa.String(length=120), nullable=False),
        sa.Column("rung", sa.Integer(), nullable=False),
        sa.Column("lead_only", sa.Boolean(), nullable=False),
        _document("result", nullable=True),
        _of_study("study_pieces"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_study_pieces")),
        sa.UniqueConstraint("study_id", "system", "dataset", "rung"),
    )
    for column in ("status", "study_id"):
        op.create_index(op.f(f"ix_study_pieces_{column}"), "study_pieces", [column])
