"""The gate of an evaluation: limits on a merge's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.contract.identifiers import merge_in

# At most 1: a limit given in percent would always pass, so 10 is refused and 0.1 means 10 %.
_Rate = Annotated[float, Field(strict=True, ge=-1, le=1)]
# Stands for every set that is not named; no dataset can have this name.
EVERY_SET = "*"


def _for_every_set(value: object) -> object:
    alone = isinstance(value, int | float) and not isinstance(value, bool)
    return {EVERY_SET: value} if alone else value


Limits = Annotated[
    dict[str, _Rate],
    BeforeValidator(_for_every_set, json_schema_input_type=float | dict[str, float]),
    Field(max_length=65),
]


_Share = Annotated[float, Field(strict=True, ge=0, le=1)]
_Count = Annotated[int, Field(strict=True, ge=0)]
Shares = Annotated[
    dict[str, _Share],
    BeforeValidator(_for_every_set, json_schema_input_type=float | dict[str, float]),
    Field(max_length=65),
]
Counts = Annotated[
    dict[str, _Count],
    BeforeValidator(_for_every_set, json_schema_input_type=int | dict[str, int]),
    Field(max_length=65),
]


class GateSpec(BaseModel):
    """Limits on a merge's results; error rates are fractions, in each dataset's own metric."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_wer: Limits = Field(
        default_factory=dict,
        description="The highest error rate: a number for every dataset, or an object with a "
        'number for each dataset\'s name, with "*" for those not named.',
        examples=[{"parliament-test": 0.1}],
    )
    max_regression: Limits = Field(
        default_factory=dict,
        description="By how much the merge's error rate may exceed that of `against`, in the same "
        "form. A negative number demands an improvement.",
        examples=[0.01],
    )
    max_loops: Shares = Field(
        default_factory=dict,
        description="The highest fraction of transcripts that repeat themselves, in the same form.",
        examples=[0.01],
    )
    max_words_on_silence: Counts = Field(
        default_factory=dict,
        description="The highest number of words transcribed where the reference is empty, in the "
        "same form.",
        examples=[0],
    )
    against: str = Field(
        "base",
        min_length=1,
        max_length=120,
        description='The system for max_regression: "base", an expert\'s name or "merge://{id}".',
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> GateSpec:
        if not any(self.limits.values()):
            raise ValueError(f"A gate needs a limit: {', '.join(self.limits)}")
        return self

    @property
    def limits(self) -> dict[str, Mapping[str, float]]:
        """The limits by name."""
        return {
            "max_wer": self.max_wer,
            "max_regression": self.max_regression,
            "max_loops": self.max_loops,
            "max_words_on_silence": self.max_words_on_silence,
        }

    @property
    def system(self) -> str:
        """The name in results of the system that `against` refers to."""
        return merge_in(self.against) or self.against

    @property
    def names(self) -> list[str]:
        """The datasets that the limits name."""
        named = dict.fromkeys(name for limits in self.limits.values() for name in limits)
        return [name for name in named if name != EVERY_SET]


def limit_of(limits: Mapping[str, float], name: str) -> float | None:
    """Return the limit for a dataset: its own, else the one for `*`, else None."""
    return limits.get(name, limits.get(EVERY_SET))
