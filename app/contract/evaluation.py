"""What an evaluation is asked, how it decodes, and what comes back: plain data for both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from app.contract.gate import GateSpec
from app.contract.identifiers import MERGE, is_id, merge_in
from app.contract.languages import language_code
from app.contract.problems import did_you_mean

Group = Literal["in_domain", "out_of_domain", "english", "multilingual", "other"]
Task = Literal["transcribe", "translate"]
Dtype = Literal["float32", "float16", "bfloat16"]
Search = Literal["default", "temperature_fallback"]
NormalizerName = Literal[
    "none",
    "basic",
    "english",
    "english_spelled",
    "open_asr",
    "brazilian_portuguese",
    "dutch",
    "french",
    "german",
    "italian",
    "polish",
    "portuguese",
    "romanian",
    "russian",
    "spanish",
    "swedish",
    "ukrainian",
]

Language = Annotated[
    str, BeforeValidator(language_code), Field(max_length=3, examples=["pt"], strict=True)
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DatasetSpec(_Model):
    """Speech with its text: a manifest, a name for it, and the group it is averaged in."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="What results call it: letters, digits, dots, hyphens and underscores.",
        examples=["parliament-test"],
    )
    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="The manifest, or its folder, audio beside it: JSON lines with audio_filepath "
        "and text, AudioFolder's metadata.csv or metadata.jsonl, or a Kaldi data folder.",
        examples=["file:///data/eval/parliament.jsonl"],
    )
    group: Group = Field("other", description="The averages that the set counts in.")
    language: Language | None = Field(
        None, description="Of this set; the manifest's own, or the evaluation's, if not given."
    )
    task: Task | None = Field(None, description="Of this set; the evaluation's if not given.")
    normalizer: NormalizerName | None = Field(
        None, description="Of this set; the evaluation's if not given."
    )


class EvaluationSpec(_Model):
    """Which datasets to decode, how, and what to compare the merge with."""

    datasets: tuple[DatasetSpec, ...] = Field(
        min_length=1, max_length=64, description="The datasets, each with a name of its own."
    )
    language: Language | None = Field(
        None,
        description="ISO 639 code of what is spoken. Multilingual checkpoints detect it where "
        "neither this nor the dataset nor its manifest says; English-only ones are never told.",
    )
    task: Task = Field("transcribe", description="transcribe, or translate into English.")
    normalizer: NormalizerName = Field(
        "basic",
        description="How texts are made comparable: none, basic and english (Whisper's), open_asr "
        "(the Open ASR Leaderboard's), or a language's name: basic, with numbers spelled out.",
    )
    num_beams: int = Field(5, ge=1, le=20, description="1 decodes greedily.")
    search: Search = Field(
        "default",
        description="temperature_fallback hears again, at rising temperatures, what comes out as a "
        "loop or as a guess, as OpenAI's Whisper does; seeded, so the same each time.",
    )
    batch_size: int = Field(16, ge=1, le=256, description="Utterances decoded at once.")
    compare_with: tuple[str, ...] = Field(
        ("base", "checkpoints"),
        max_length=64,
        description='"base", "checkpoints" (every expert) or "merge://{id}", decoded alike.',
    )
    gate: GateSpec | None = Field(
        None, description="What the error rates must keep to: shown as `gate.passed`."
    )

    @field_validator("datasets")
    @classmethod
    def _names_differ(cls, value: tuple[DatasetSpec, ...]) -> tuple[DatasetSpec, ...]:
        seen: set[str] = set()
        for dataset in value:
            if dataset.name in seen:
                raise ValueError(f'Two datasets are called "{dataset.name}"; rename one')
            seen.add(dataset.name)
        return value

    @field_validator("compare_with")
    @classmethod
    def _comparable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for other in value:
            if other not in {"base", "checkpoints"} and not is_id(merge_in(other) or "", MERGE):
                raise ValueError(f'"{other}" is not "base", "checkpoints" or "merge://mrg_..."')
        return tuple(dict.fromkeys(value))

    @field_validator("gate")
    @classmethod
    def _of_these_sets(cls, value: GateSpec | None, info: ValidationInfo) -> GateSpec | None:
        if value is None or not {"datasets", "compare_with"} <= info.data.keys():
            return value
        known = [dataset.name for dataset in info.data["datasets"]]
        for name in value.names:
            if name not in known:
                raise ValueError(unknown_set(name, known))
        needed = value.against
        if needed != "base" and not merge_in(needed):
            needed = "checkpoints"
        if value.max_regression and needed not in info.data["compare_with"]:
            raise ValueError(
                f'Regressions against "{value.against}" need "{needed}" in compare_with'
            )
        return value

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs of the datasets' manifests."""
        return tuple(dataset.uri for dataset in self.datasets)

    def decoding_of(self, dataset: DatasetSpec) -> DecodingOptions:
        """Return the decoding settings of one dataset, its own language and task first."""
        return DecodingOptions(
            num_beams=self.num_beams,
            search=self.search,
            batch_size=self.batch_size,
            language=dataset.language,
            default_language=self.language,
            task=dataset.task or self.task,
        )

    def normalizer_of(self, dataset: DatasetSpec) -> NormalizerName:
        """Return the normaliser of one dataset."""
        return dataset.normalizer or self.normalizer


def unknown_set(name: str, known: Sequence[str]) -> str:
    """Return what to say of a gate's set that is not evaluated."""
    listed = ", ".join(known) or "none yet"
    return f'There is no set "{name}".{did_you_mean(name, known)} Sets: {listed}'


class DecodingOptions(_Model):
    """How one dataset is decoded; `dtype` None is float16 on a GPU and float32 elsewhere."""

    num_beams: int = Field(5, ge=1, le=20)
    search: Search = "default"
    batch_size: int = Field(16, ge=1, le=256)
    language: Language | None = None
    default_language: Language | None = None
    task: Task = "transcribe"
    dtype: Dtype | None = None
    max_audio_seconds: float = Field(7200.0, gt=0, description="Longer audio is skipped by name.")

    def language_of(self, utterance: Utterance) -> str | None:
        """Return the language: the dataset's, else the utterance's, else the evaluation's."""
        return self.language or utterance.language or self.default_language


class Utterance(_Model):
    """One line of a manifest; `audio` is the path as the manifest writes it.

    `channel` counts from 0; without it all channels are averaged.
    """

    index: int
    audio: str
    reference: str
    duration_seconds: float | None = None
    offset_seconds: float | None = None
    channel: int | None = None
    language: str | None = None
    speaker: str | None = None
    session: str | None = None


class Transcript(_Model):
    """What was heard, and the seconds of work it took; kept in the cache under its key."""

    hypothesis: str
    decode_seconds: float


class TranscriptCache(Protocol):
    """Transcripts by key (64 hexadecimal digits); one that was put is there after a crash."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Transcript]:
        """Return those of the keys that are known."""
        ...

    def put_many(self, transcripts: Mapping[str, Transcript]) -> None:
        """Keep the transcripts; a key that is there already keeps what it has."""
        ...


class UtteranceResult(_Model):
    """An utterance that was decoded, now or before (`cached`)."""

    index: int
    audio: str
    reference: str
    hypothesis: str
    audio_seconds: float
    decode_seconds: float
    cached: bool = False
    channel: int | None = None
    language: str | None = None
    speaker: str | None = None
    session: str | None = None


class SkippedUtterance(_Model):
    """An utterance that could not be decoded, and why."""

    index: int
    audio: str
    reason: str


class AudioWarning(_Model):
    """An utterance that was decoded, and what its audio, header and manifest disagree on."""

    index: int
    audio: str
    message: str


class Fallback(_Model):
    """When an utterance is heard again at the next temperature: OpenAI's own thresholds.

    `compression_ratio` is of the text, `logprob` the mean log probability of its tokens; where
    `no_speech` is exceeded and `logprob` not reached, there was no speech.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    logprob: float = -1.0
    no_speech: float = 0.6


class DecodingRecord(_Model):
    """The settings that were used, as results show them; language None was left to the model.

    The backends find the same hypotheses: `transformers` is that library's `generate`, `afluente`
    an own search, which leaves audio of several windows to the other. `checkpoint_settings` are
    those of the checkpoint's own files that can change a hypothesis, by transformers' names; None
    (as `search` None) is of a result from before they were noted.
    """

    backend: str = "transformers"
    search: Literal["greedy", "beam", "temperature_fallback"] | None = None
    num_beams: int
    language: str | None
    task: Task | None
    dtype: Dtype
    device_type: str = "cpu"
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoint_settings: dict[str, str] | None = None
    fallback: Fallback | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What decides hypotheses, as text: only results of equal settings are each other's like.

        The checkpoint's own settings are in it by their names; who did the search is not, and those
        without effect are not. Results from before the checkpoint's own were noted are like each
        other, and unlike any of which they are known.
        """
        own = self.checkpoint_settings
        if own is None:
            own = {"checkpoint_settings": "not recorded"}
        return {
            "search": f"temperature_fallback ({self.fallback})" if self.fallback else "default",
            "num_beams": str(self.num_beams),
            "language": str(self.language),
            "task": str(self.task),
            "dtype": self.dtype,
            **own,
        }


class DatasetResult(_Model):
    """One checkpoint decoded on one dataset, in the manifest's order."""

    utterances: tuple[UtteranceResult, ...]
    skipped: tuple[SkippedUtterance, ...] = ()
    audio_warnings: tuple[AudioWarning, ...] = ()
    decoding: DecodingRecord
    language: str | None = None
    manifest_sha256: str

    @property
    def status(self) -> Literal["succeeded", "partial", "failed"]:
        """`partial` if something was skipped, `failed` if there is nothing to score."""
        if not self.utterances:
            return "failed"
        return "partial" if self.skipped else "succeeded"


class EvaluatedDataset(_Model):
    """A result with what the report needs to know of its dataset."""

    name: str
    group: Group = "other"
    normalizer: NormalizerName = "basic"
    result: DatasetResult


@dataclass(frozen=True, slots=True)
class ErrorCounts:
    """Edit operations over reference units (words or characters); they add up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_units(self) -> int:
        """Length of the reference: N in the error rate."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float | None:
        """Errors over reference units, a fraction; None if the reference has none."""
        return self.errors / self.reference_units if self.reference_units else None

    def as_dict(self) -> dict[str, int]:
        """Return the four counts by name."""
        return {
            "substitutions": self.substitutions,
            "deletions": self.deletions,
            "insertions": self.insertions,
            "hits": self.hits,
        }

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        return ErrorCounts(
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
            hits=self.hits + other.hits,
        )
