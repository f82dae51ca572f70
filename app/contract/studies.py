"""The body of `POST /studies`: which merges to try, how to judge them, what to keep."""

from __future__ import annotations

from math import isinf
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from app.contract.calibration import CalibrationSpec
from app.contract.errors import InvalidRequestError
from app.contract.evaluation import EvaluationSpec, Measurement, Reference, unique
from app.contract.formats import Backend
from app.contract.gate import GateSpec
from app.contract.measures import Measure, parse_measure
from app.contract.problems import problems_of
from app.contract.requests import Checkpoint, CheckpointRef, OutputSpec

Strategy = Literal["grid", "random", "tpe", "cma_es", "nsga2"]
MOST_TRIALS = 1000
DEFAULT_TRIALS = 50
# Float arithmetic with smaller steps is of no use.
_MOST_STEPS = 10**6
# Kept merges that each kept merge is compared with on the test sets, the best ones.
_MOST_COMPARED = 16
# The shares of the development utterances after which trials are compared.
RUNGS = (1 / 8, 1 / 4, 1 / 2, 1.0)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Range(_Model):
    """All values between two ends, both included."""

    low: float = Field(description="The lowest value.")
    high: float = Field(description="The highest value.")
    log: bool = Field(False, description="Search on a logarithmic scale.")
    step: float | None = Field(None, gt=0, description="The distance between values.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError("`low` must be less than `high`")
        if self.log and self.step is not None:
            raise ValueError("A logarithmic range takes no step")
        if self.log and self.low <= 0:
            raise ValueError("A logarithmic range begins above 0")
        if isinf(self.high - self.low):
            raise ValueError("`low` and `high` are too far apart")
        if self.step is not None and not 1 <= (self.high - self.low) / self.step <= _MOST_STEPS:
            raise ValueError(f"A range has 1 to {_MOST_STEPS:,} steps")
        return self


class CandidateRule(_Model):
    """Another method, or other parameters, for tensors that match a glob."""

    match: str = Field(min_length=1, max_length=500, examples=["model.encoder.*"])
    method: str | None = Field(None, description="Default: the candidate's.")
    parameters: dict[str, Any] = Field(default_factory=dict)
    weights: tuple[float, ...] | None = None


class Candidate(_Model):
    """A method to try. A parameter is a value, a list of choices, or a range (`low`, `high`)."""

    method: str = Field(description="See GET /methods.", examples=["boosted_tsv_m"])
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        examples=[{"beta": [0.1, 0.3, 0.5], "scaling_coefficient": {"low": 0.5, "high": 2.0}}],
    )
    weights: dict[str, Any] = Field(
        default_factory=dict,
        description="Experts' weights by name: a value, a list of choices, or a range.",
    )
    rules: tuple[CandidateRule, ...] = Field((), max_length=50)


_CANDIDATES = TypeAdapter(tuple[Candidate, ...])


class SearchSpec(_Model):
    """How the candidates' parameters are searched, and for how long."""

    strategy: Strategy = Field(
        "tpe",
        description="grid tries every combination; random, tpe, cma_es and nsga2 (for several "
        "objectives) are Optuna's samplers.",
    )
    trials: int | None = Field(
        None,
        ge=1,
        le=MOST_TRIALS,
        description=f"Merges to try. Default: the whole grid, otherwise {DEFAULT_TRIALS}.",
    )
    seconds: float | None = Field(
        None,
        gt=0,
        description="Budget of time: no trial starts after so many seconds of searching.",
    )
    seed: int = Field(0, ge=0, lt=2**32)
    racing: bool = Field(
        True, description="End a trial early that is significantly worse than the best so far."
    )
    batch: int = Field(
        4,
        ge=1,
        le=64,
        description="Trials chosen at once. Results do not depend on how many workers there are.",
    )


class DevelopmentSpec(Measurement):
    """The sets on which trials are compared, decoded greedily unless told otherwise."""

    num_beams: int = Field(1, ge=1, le=20, description="Beam width; 1 decodes greedily.")

    @field_validator("backend")
    @classmethod
    def _in_memory(cls, value: Backend) -> Backend:
        if value != "default":
            raise ValueError(f"Trials are decoded in memory, not with {value}; use it in test")
        return value


class Constraint(_Model):
    """A limit on a development set's error rate, or on an average."""

    set: str = Field(
        description="A development set, a group (its macro average), or `group.micro`.",
        examples=["english"],
    )
    max_regression: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="By how much the rate may exceed that of `against`; a fraction.",
    )
    max_wer: float | None = Field(None, ge=0, le=1, description="The highest rate; a fraction.")
    against: str = Field("base", description='"base", an expert or a reference, by name.')

    @model_validator(mode="after")
    def _limits_something(self) -> Constraint:
        if self.max_regression is None and self.max_wer is None:
            raise ValueError("Give max_regression or max_wer")
        return self


def _kept(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    if value == "all":
        return value
    raise ValueError('Give a number from 1, or "all"')


class StudyRequest(_Model):
    """Which merge to ship: candidates, sets to choose on, sets to test on, and a budget."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "ep-2026-11",
                    "base": "file:///models/whisper-base",
                    "checkpoints": [
                        {"uri": "file:///models/ft/parliament", "name": "parliament"},
                        {"uri": "file:///models/ft/telephone", "name": "telephone"},
                    ],
                    "references": [{"name": "full-ft", "uri": "file:///models/ft/all"}],
                    "candidates": [
                        {"method": "soup"},
                        {
                            "method": "boosted_tsv_m",
                            "parameters": {
                                "beta": [0.1, 0.3, 0.5],
                                "scaling_coefficient": {"low": 0.5, "high": 2.0},
                            },
                            "weights": {"telephone": {"low": 0.5, "high": 1.5}},
                        },
                    ],
                    "search": {"strategy": "tpe", "trials": 40, "seed": 0},
                    "objectives": ["in_domain.macro"],
                    "constraints": [{"set": "english", "max_regression": 0.005}],
                    "development": {
                        "datasets": [
                            {
                                "name": "parliament-dev",
                                "uri": "file:///data/dev/parliament.jsonl",
                                "group": "in_domain",
                            },
                            {
                                "name": "english-dev",
                                "uri": "file:///data/dev/english.jsonl",
                                "group": "english",
                            },
                        ],
                        "language": "pt",
                    },
                    "test": {
                        "datasets": [
                            {
                                "name": "parliament-test",
                                "uri": "file:///data/test/parliament.jsonl",
                                "group": "in_domain",
                            }
                        ],
                        "language": "pt",
                    },
                    "keep": 3,
                }
            ]
        }
    )

    name: str | None = Field(None, min_length=1, max_length=200)
    base: Checkpoint | None = Field(None, description="As for a merge.")
    checkpoints: tuple[Checkpoint, ...] = Field(
        min_length=1, description="The fine-tuned checkpoints (experts), in order."
    )
    references: tuple[Reference, ...] = Field(
        (), max_length=16, description="Models to compare with, such as one trained on all data."
    )
    candidates: Literal["all"] | tuple[Candidate, ...] = Field(
        description='Methods to try; "all" tries each method with its defaults.'
    )
    calibration: CalibrationSpec | None = Field(
        None,
        description="As for a merge, for the candidates whose methods need it. None of it may be "
        "in a test set.",
    )
    search: SearchSpec = Field(SearchSpec(), description="Strategy and budget.")
    objectives: tuple[str, ...] = Field(
        (),
        max_length=4,
        description="What to minimise: `group.macro`, `group.micro` or a development set. Default: "
        "in_domain.macro. With several, the front is kept.",
        examples=[["in_domain.macro"]],
    )
    constraints: tuple[Constraint, ...] = Field((), max_length=32)
    development: DevelopmentSpec | None = Field(
        None,
        description="The sets to choose on. Without them nothing is decoded, and every trial is "
        "kept: a sweep.",
    )
    test: Measurement | None = Field(
        None, description="The sets on which the kept merges are measured; they choose nothing."
    )
    keep: Annotated[int | Literal["all"], BeforeValidator(_kept)] = Field(
        3, description='How many of the best trials become merges, or "all".'
    )
    gate: GateSpec | None = Field(
        None, description="Limits for the best merge's results on `test`; else nothing is shipped."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of randomised merge methods.")
    output: OutputSpec = Field(OutputSpec(), description="How kept merges are written.")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=32)

    @field_validator("references")
    @classmethod
    def _references_differ(cls, value: tuple[Reference, ...]) -> tuple[Reference, ...]:
        unique("references", [reference.name for reference in value])
        return value

    @field_validator("candidates", mode="before")
    @classmethod
    def _some_candidates(cls, value: object) -> object:
        if value != "all" and not isinstance(value, list | tuple):
            raise ValueError('Give a list of candidates, or "all"')
        if value != "all" and not 1 <= len(value) <= 100:
            raise ValueError("Give 1 to 100 candidates")
        # Here, because errors in a union name its alternatives instead of fields.
        return value if value == "all" else _CANDIDATES.validate_python(value)

    @model_validator(mode="after")
    def _fits_together(self) -> StudyRequest:
        if self.development is None:
            for name in ("objectives", "constraints"):
                if getattr(self, name):
                    raise ValueError(f"{name} need development sets; add `development`")
            if self.search.strategy not in {"grid", "random"}:
                raise ValueError(
                    f"The strategy {self.search.strategy} needs `development` sets to learn from; "
                    "without them use grid or random"
                )
        if self.gate is not None and self.test is None:
            raise ValueError("A gate judges the results on `test`; add `test`")
        if self.gate is not None and self.development is None:
            raise ValueError("A gate judges the best merge; add `development` sets to find it")
        if self.test is not None:
            # The same checks as for an evaluation with this gate.
            self.evaluation()
        return self

    @property
    def uris(self) -> tuple[str, ...]:
        """All URIs in the request."""
        sources = [*([self.base] if self.base else []), *self.checkpoints]
        found = [source.uri for source in sources if isinstance(source, CheckpointRef)]
        found += [reference.uri for reference in self.references]
        for measurement in (self.calibration, self.development, self.test):
            found += measurement.uris if measurement else ()
        return tuple(found)

    @property
    def keeps_all(self) -> bool:
        """Whether every trial becomes a merge."""
        return self.keep == "all" or self.development is None

    @property
    def minimised(self) -> tuple[str, ...]:
        """The objectives, the default filled in; none without development sets."""
        if self.development is None or self.objectives:
            return self.objectives
        groups = {dataset.group for dataset in self.development.datasets}
        return ("in_domain.macro" if "in_domain" in groups else "all.macro",)

    def measure(self, text: str) -> Measure:
        """Return what an objective or a constraint names; ValueError if it names nothing."""
        return parse_measure(text, self.development.datasets if self.development else ())

    def evaluation(self, others: tuple[str, ...] = (), *, judged: bool = True) -> EvaluationSpec:
        """Return the evaluation of a kept merge on `test`, compared with the first other merges.

        `others` are URIs, the best merges first. `judged`: with the gate.
        """
        assert self.test is not None
        compared = ("base", "checkpoints") if self.base else ("checkpoints",)
        try:
            return EvaluationSpec(
                **self.test.model_dump(),
                compare_with=(*compared, *others[:_MOST_COMPARED]),
                references=tuple(one.model_dump() for one in self.references),
                gate=self.gate.model_dump() if self.gate and judged else None,
            )
        except ValidationError as error:
            raise ValueError(str(error.errors()[0]["msg"]).removeprefix("Value error, ")) from None


def parse_study(document: Any) -> StudyRequest:
    """Return the request; InvalidRequestError lists what is wrong with its form."""
    try:
        return StudyRequest.model_validate(document)
    except ValidationError as error:
        raise InvalidRequestError.of(problems_of(error, StudyRequest)) from None
