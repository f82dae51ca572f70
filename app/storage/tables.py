"""The database's tables."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    }
)

_ID = String(30)
_TIME = Float(53)  # seconds since 1970, the database's clock
_JSON = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def _job_columns() -> tuple[Column[object], ...]:
    """Return the columns that all kinds of job share."""
    return (
        Column("id", _ID, primary_key=True),
        Column("status", String(12), nullable=False, index=True),
        # The lease: the attempt with this `fence` owns the job.
        Column("fence", Integer, nullable=False, default=0),
        Column("lease_owner", String(200)),
        Column("lease_expires_at", _TIME),
        Column("attempt", Integer, nullable=False, default=0),
        Column("crashes", Integer, nullable=False, default=0),
        Column("killed", Boolean, nullable=False, default=False),
        Column("sent_at", _TIME),
        Column("progress_done", BigInteger, nullable=False, default=0),
        Column("progress_total", BigInteger),
        Column("progress_unit", String(20)),
        Column("error", _JSON),
        Column("warnings", _JSON, nullable=False, default=list),
        Column("created_at", _TIME, nullable=False),
        Column("started_at", _TIME),
        Column("finished_at", _TIME),
    )


merges = Table(
    "merges",
    metadata,
    *_job_columns(),
    Column("name", String(200), index=True),
    Column("method", String(40), nullable=False, index=True),
    Column("phase", String(20)),
    Column("phase_started_at", _TIME),
    Column("request", _JSON, nullable=False),
    Column("recipe", _JSON, nullable=False),
    # The resolved sources: {"base": {...}, "checkpoints": [...]}, with digests.
    Column("sources", _JSON, nullable=False),
    Column("artifact_folder", String(200)),
    Column("artifacts", _JSON, nullable=False, default=list),
    # The failed merge whose finished tensors this one adopts.
    Column("continues", _ID),
)

# The events of a `topic`: a merge with its evaluations, or a study.
events = Table(
    "events",
    metadata,
    Column("topic", _ID, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("type", String(20), nullable=False),
    Column("data", _JSON, nullable=False),
    Column("created_at", _TIME, nullable=False),
)

evaluations = Table(
    "evaluations",
    metadata,
    *_job_columns(),
    Column(
        "merge_id", _ID, ForeignKey("merges.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("spec", _JSON, nullable=False),
    # The verdict on the spec's gate, written when the evaluation ends.
    Column("verdict", _JSON),
)

# The results: one row per (evaluation, system, dataset).
evaluation_results = Table(
    "evaluation_results",
    metadata,
    Column(
        "evaluation_id",
        _ID,
        ForeignKey("evaluations.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("system", String(120), primary_key=True),
    Column("dataset", String(120), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("result", _JSON, nullable=False),
    Column("utterances", _JSON, nullable=False),
    Column("created_at", _TIME, nullable=False),
)

# The parts of running evaluations: one row per (system, dataset), deleted when the evaluation ends.
evaluation_parts = Table(
    "evaluation_parts",
    metadata,
    *_job_columns(),
    Column(
        "merge_id", _ID, ForeignKey("merges.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("evaluation_id", _ID, ForeignKey("evaluations.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("system", String(120), nullable=False),
    Column("dataset", String(120), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    # cpu or cuda; the same for all parts, since results from different types are not comparable.
    Column("device_type", String(20), nullable=False),
    # Parts in one lane share utterances, so they are decoded one after another.
    Column("lane", String(64), nullable=False),
    # Another worker failed or died on it: only the evaluation's lead tries again.
    Column("lead_only", Boolean, nullable=False, default=False),
)

studies = Table(
    "studies",
    metadata,
    *_job_columns(),
    Column("name", String(200), index=True),
    Column("phase", String(20)),
    Column("phase_started_at", _TIME),
    Column("request", _JSON, nullable=False),
    # As for a merge, and the references.
    Column("sources", _JSON, nullable=False),
    # The budget, which may be extended.
    Column("trials", Integer, nullable=False),
    Column("seconds", Float),
    # Of the first attempt: results from different types of device are not comparable.
    Column("device_type", String(20)),
    # The winner, what was kept and shipped, and why.
    Column("outcome", _JSON, nullable=False, default=dict),
)

# The merges that a study tries, in the order in which they were chosen.
study_trials = Table(
    "study_trials",
    metadata,
    Column("study_id", _ID, ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    # Trials of one batch were chosen together, before any of them was scored.
    Column("batch", Integer, nullable=False),
    Column("candidate", Integer, nullable=False),
    Column("point", _JSON, nullable=False),
    Column("recipe", _JSON, nullable=False),
    Column("status", String(12), nullable=False),
    # How many rungs it has finished, and what it scored on them.
    Column("rungs", Integer, nullable=False, default=0),
    Column("scores", _JSON, nullable=False, default=dict),
    Column("reason", Text),
    Column("merge_id", _ID),
    Column("created_at", _TIME, nullable=False),
    Column("finished_at", _TIME),
)

# The decoding of a study: a system on a rung's share of a dataset each. Any worker may claim one.
study_pieces = Table(
    "study_pieces",
    metadata,
    *_job_columns(),
    Column(
        "study_id", _ID, ForeignKey("studies.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("position", Integer, nullable=False),
    # "base", an expert's or a reference's name, or a trial's number as "#12".
    Column("system", String(120), nullable=False),
    Column("dataset", String(120), nullable=False),
    Column("rung", Integer, nullable=False),
    Column("lead_only", Boolean, nullable=False, default=False),
    Column("result", _JSON),
    UniqueConstraint("study_id", "system", "dataset", "rung"),
)

transcripts = Table(
    "transcripts",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("hypothesis", Text, nullable=False),
    Column("decode_seconds", Float, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("detected_language", String(20)),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("api_key_id", String(30), primary_key=True),
    Column("endpoint", String(200), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("resource_id", _ID),
    Column("created_at", _TIME, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scopes", _JSON, nullable=False),
    Column("created_at", _TIME, nullable=False),
    Column("revoked_at", _TIME),
)

workers = Table(
    "workers",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("host", String(200), nullable=False),
    Column("started_at", _TIME, nullable=False),
    Column("seen_at", _TIME, nullable=False),
    Column("stopping", Boolean, nullable=False, default=False),
)

# One row per role (such as the sweeper): its holder and expiry.
elections = Table(
    "elections",
    metadata,
    Column("role", String(40), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("expires_at", _TIME, nullable=False),
)

Index("ix_merges_created_at_id", merges.c.created_at, merges.c.id)
Index("ix_studies_created_at_id", studies.c.created_at, studies.c.id)
Index(
    "ix_evaluation_parts_evaluation_id_lane_status",
    evaluation_parts.c.evaluation_id,
    evaluation_parts.c.lane,
    evaluation_parts.c.status,
)
