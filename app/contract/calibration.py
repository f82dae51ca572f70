"""The calibration sets in a request: speech of each expert's domain, on which nothing is tested."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

from app.contract.evaluation import DecodingOptions, Language, Task, unique


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CalibrationSet(_Model):
    """A dataset of one expert's domain, or for all experts."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="A name for messages and records.",
        examples=["parliament-train"],
    )
    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="A dataset in any form that an evaluation reads, with its references.",
        examples=["file:///data/train/parliament.jsonl"],
    )
    expert: str | None = Field(
        None,
        description="The checkpoint, by name, whose domain it is of. Default: all of them.",
        examples=["parliament"],
    )
    language: Language | None = Field(
        None, description="Language of this set. Default: the manifest's, else the request's."
    )
    task: Task = Field("transcribe", description="What the references are.")


class CalibrationSpec(_Model):
    """Speech of each expert's domain, for methods that need it."""

    datasets: tuple[CalibrationSet, ...] = Field(
        min_length=1,
        max_length=64,
        description="The sets; their names must differ, and every expert needs one.",
    )
    utterances: int = Field(
        64,
        ge=1,
        le=4096,
        description="Utterances of each set, evenly spaced in it, that are used.",
    )
    language: Language | None = Field(
        None, description="ISO 639 code, where neither a set nor its manifest gives one."
    )

    @field_validator("datasets")
    @classmethod
    def _names_differ(cls, value: tuple[CalibrationSet, ...]) -> tuple[CalibrationSet, ...]:
        unique("calibration sets", [one.name for one in value])
        return value

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs of the sets' manifests."""
        return tuple(one.uri for one in self.datasets)

    def of(self, expert: str) -> tuple[CalibrationSet, ...]:
        """Return an expert's sets: its own, and those for all."""
        return tuple(one for one in self.datasets if one.expert in {None, expert})

    def decoding_of(self, dataset: CalibrationSet) -> DecodingOptions:
        """Return a set's language and task, as an evaluation's."""
        return DecodingOptions(
            language=dataset.language, default_language=self.language, task=dataset.task
        )
