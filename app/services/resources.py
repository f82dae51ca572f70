"""The API's resources; their schemas appear in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.contract.states import EvaluationStatus, MergeStatus, Phase

_TIME = "ISO 8601, UTC."
_QUEUED_BECAUSE = (
    "For a queued job: why it cannot run now, as in `/readyz`; null if it only waits its turn."
)


class ProgressResource(BaseModel):
    """Progress of the current phase."""

    done: int = 0
    total: int | None = None
    unit: str | None = Field(None, examples=["tensors"])
    fraction: float = 0.0
    eta_seconds: float | None = Field(
        None, description="Estimated remaining seconds; null until something is done."
    )


class SourceResource(BaseModel):
    """A checkpoint: its requested URI, its pinned URI, and the digest of the files read."""

    uri: str
    name: str
    resolved: str | None = Field(None, description="The URI with its revision pinned.")
    sha256: str | None = Field(
        None, description="Digest of the sorted (path, sha256) of its files; null until read."
    )
    weight: float | None = None


class ArchitectureResource(BaseModel):
    """What kind of model the checkpoints are, as their config.json says."""

    model_type: str = Field(examples=["whisper"])
    model_class: str | None = Field(description="transformers' class that loads the artifact.")
    processor_class: str | None = Field(None, description="Its tokenizer and features, if known.")
    task: Literal["seq2seq", "ctc"] | None = Field(
        description="What an evaluation decodes; null: these merge, and cannot be evaluated."
    )


class ArtifactResource(BaseModel):
    """One file of the merged checkpoint."""

    name: str = Field(examples=["model.safetensors"])
    bytes: int
    sha256: str
    media_type: str
    url: str


class WarningResource(BaseModel):
    """A warning: something to know that did not stop the job."""

    code: str = Field(examples=["zero_task_vector"])
    message: str


class ErrorResource(BaseModel):
    """Why a job failed."""

    code: str = Field(examples=["non_finite_input"])
    message: str
    param: str | None = None
    retryable: bool = False


GateCheck = Literal["max_wer", "max_regression", "max_loops", "max_words_on_silence", "complete"]


class GateFailure(BaseModel):
    """A limit that was exceeded; numbers are fractions, or null if there is none."""

    dataset: str | None
    check: GateCheck = Field(
        description="`complete`: the set is missing or partial, or its evaluation failed."
    )
    value: float | None
    limit: float | None
    excess: float | None
    message: str


class GateResource(BaseModel):
    """A gate's limits and its verdict."""

    passed: bool | None = Field(description="Null until the evaluation has ended.")
    max_wer: dict[str, float]
    max_regression: dict[str, float]
    max_loops: dict[str, float] = Field(default_factory=dict)
    max_words_on_silence: dict[str, int] = Field(default_factory=dict)
    against: str
    failures: list[GateFailure]


class EvaluationSummary(BaseModel):
    """The newest evaluation of a merge; `none` if none was requested."""

    status: EvaluationStatus | Literal["none"]
    id: str | None = None
    progress: ProgressResource | None = None
    error: ErrorResource | None = None
    gate: GateResource | None = None
    url: str | None = None


class MergeResource(BaseModel):
    """A merge."""

    id: str = Field(examples=["mrg_01KB0Y8W5RZ9J2M7N4C6T3VHQX"])
    object: Literal["merge"] = "merge"
    name: str | None
    status: MergeStatus
    phase: Phase | None = Field(description="The phase of a running merge.")
    progress: ProgressResource
    method: str
    parameters: dict[str, Any] = Field(description="The parameters with defaults filled in.")
    rules: list[dict[str, Any]]
    seed: int
    output: dict[str, Any]
    base: SourceResource | None
    checkpoints: list[SourceResource]
    architecture: ArchitectureResource
    artifacts: list[ArtifactResource]
    evaluation: EvaluationSummary
    warnings: list[WarningResource]
    attempt: int = Field(description="How many times a worker has started it.")
    continues: str | None = Field(description="The failed merge that this one retries.")
    queued_because: str | None = Field(None, description=_QUEUED_BECAUSE)
    created_at: str = Field(description=_TIME)
    started_at: str | None = Field(description=_TIME)
    finished_at: str | None = Field(description=_TIME)
    error: ErrorResource | None
    metadata: dict[str, str]
    links: dict[str, str]


class EvaluationResource(BaseModel):
    """An evaluation of a merge."""

    id: str = Field(examples=["evl_01KB0Y8W5RZ9J2M7N4C6T3VHQX"])
    object: Literal["evaluation"] = "evaluation"
    merge_id: str
    status: EvaluationStatus
    progress: ProgressResource
    spec: dict[str, Any] = Field(description="The request with defaults filled in.")
    gate: GateResource | None = Field(description="Null if none was requested.")
    warnings: list[WarningResource]
    attempt: int
    queued_because: str | None = Field(None, description=_QUEUED_BECAUSE)
    created_at: str = Field(description=_TIME)
    started_at: str | None = Field(description=_TIME)
    finished_at: str | None = Field(description=_TIME)
    error: ErrorResource | None
    links: dict[str, str]


class EventResource(BaseModel):
    """An event of a merge; ids count from 1 without gaps."""

    id: int
    type: str = Field(examples=["progress"])
    data: dict[str, Any]
    created_at: str = Field(description=_TIME)


class MergePage(BaseModel):
    """Merges, newest first."""

    data: list[MergeResource]
    next_page_token: str | None = Field(description="For the next page; null on the last one.")


class EvaluationPage(BaseModel):
    """A merge's evaluations, newest first."""

    data: list[EvaluationResource]
    next_page_token: str | None = Field(description="For the next page; null on the last one.")


class EventPage(BaseModel):
    """A merge's events, oldest first."""

    data: list[EventResource]
    next_page_token: str | None = Field(description="`after` for the next page, or null.")


class ArtifactPage(BaseModel):
    """All files of the merged checkpoint."""

    data: list[ArtifactResource]


class PlanResource(BaseModel):
    """The plan of a merge that was not queued."""

    object: Literal["plan"] = "plan"
    method: str
    parameters: dict[str, Any]
    base: SourceResource | None
    checkpoints: list[SourceResource]
    architecture: ArchitectureResource
    warnings: list[WarningResource]
    plan: dict[str, Any] = Field(description="Each tensor's treatment and cost, and the totals.")


class MethodPage(BaseModel):
    """All merge methods."""

    data: list[dict[str, Any]]
