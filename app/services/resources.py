"""The API's resources; their schemas appear in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.contract.states import EvaluationStatus, MergeStatus, Phase, StudyPhase, TrialStatus

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
    form: Literal["difference"] | None = Field(
        None, description="`difference`: the files hold an expert minus the base."
    )


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


class KeptTrial(BaseModel):
    """A trial that became a merge."""

    trial: int
    merge_id: str | None
    evaluation_id: str | None = Field(description="Its evaluation on the test sets, if any.")


class OutcomeResource(BaseModel):
    """What a study has found so far; the final words when it has succeeded."""

    winner: int | None = Field(None, description="The best trial that meets all constraints.")
    shipped: str | None = Field(
        None, description="The merge to ship: the winner's, unless a gate refuses it."
    )
    reason: str | None = Field(None, description="Why nothing is shipped.")
    front: list[int] = Field(
        default_factory=list, description="With several objectives: trials that none dominates."
    )
    kept: list[KeptTrial] = Field(default_factory=list)
    importance: dict[str, dict[str, float]] = Field(
        default_factory=dict,
        description="By method: the share of each parameter in the differences between trials.",
    )


class BudgetResource(BaseModel):
    """A study's budget, and what it has used."""

    trials: int
    trials_used: int
    seconds: float | None
    seconds_used: float


class TrialResource(BaseModel):
    """A merge that a study tries."""

    number: int
    status: TrialStatus
    method: str
    label: str = Field(examples=["boosted_tsv_m β=0.3 λ=1.2"])
    values: dict[str, Any] = Field(description="What was searched; the rest is in `recipe`.")
    recipe: dict[str, Any] = Field(description="The body of `POST /merges` that gives this merge.")
    fraction: float = Field(description="The share of the development utterances decoded.")
    objectives: list[float] | None = Field(description="On the utterances decoded so far.")
    violations: list[float] | None = Field(
        description="By how much each constraint is exceeded; 0 or less: met."
    )
    feasible: bool | None
    sets: dict[str, dict[str, int]] = Field(description="Utterances, errors and words by set.")
    reason: str | None = Field(description="Why it was stopped, or failed.")
    merge_id: str | None
    created_at: str = Field(description=_TIME)
    finished_at: str | None = Field(description=_TIME)


class StudyResource(BaseModel):
    """A study: which merge to ship."""

    id: str = Field(examples=["std_01KB0Y8W5RZ9J2M7N4C6T3VHQX"])
    object: Literal["study"] = "study"
    name: str | None
    status: MergeStatus
    phase: StudyPhase | None = Field(description="The phase of a running study.")
    progress: ProgressResource
    budget: BudgetResource
    best: TrialResource | None = Field(description="The best complete trial so far.")
    outcome: OutcomeResource
    request: dict[str, Any] = Field(description="The request with defaults filled in.")
    base: SourceResource | None
    checkpoints: list[SourceResource]
    references: list[dict[str, Any]]
    warnings: list[WarningResource]
    attempt: int
    queued_because: str | None = Field(None, description=_QUEUED_BECAUSE)
    created_at: str = Field(description=_TIME)
    started_at: str | None = Field(description=_TIME)
    finished_at: str | None = Field(description=_TIME)
    error: ErrorResource | None
    metadata: dict[str, str]
    links: dict[str, str]


class StudyPage(BaseModel):
    """Studies, newest first."""

    data: list[StudyResource]
    next_page_token: str | None = Field(description="For the next page; null on the last one.")


class TrialPage(BaseModel):
    """A study's trials, in the order in which they were chosen."""

    data: list[TrialResource]
    next_page_token: str | None = Field(description="For the next page; null on the last one.")


class StudyPlanResource(BaseModel):
    """What a study would do; nothing was queued."""

    object: Literal["study_plan"] = "study_plan"
    trials: int = Field(description="Merges that will be tried.")
    systems: list[str] = Field(description="Decoded once to compare with.")
    development: dict[str, Any] = Field(
        description="Utterances and seconds of audio: of the sets, and decoded at most in all."
    )
    candidates: list[dict[str, Any]] = Field(
        description="Each with its dimensions and the cost of one merge."
    )
    base: SourceResource | None
    checkpoints: list[SourceResource]
    references: list[dict[str, Any]]
    warnings: list[WarningResource]


class EventResource(BaseModel):
    """An event of a merge or a study; ids count from 1 without gaps."""

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
    plan: dict[str, Any] = Field(
        description="Each tensor's treatment and cost, the totals (peak_memory_bytes: of the "
        "largest tensor), and what decides how many tensors are merged at once."
    )


class MethodPage(BaseModel):
    """All merge methods."""

    data: list[dict[str, Any]]
