"""The evaluation in a request, its decoding settings and its results, for API and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.contract.formats import Backend
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
    """A manifest of speech and transcripts, its name, and the group for averages."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name in results: letters, digits, dots, hyphens and underscores.",
        examples=["parliament-test"],
    )
    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="The manifest, or the folder with manifest and audio, in any form of "
        "docs/evaluation.md: JSON lines, CSV, Kaldi, Lhotse, NeMo, WebDataset, STM, parquet, "
        "save_to_disk; or hf://datasets/organisation/name. A query chooses a part and its columns: "
        "?config=pt&split=test&text=sentence&audio=path&speaker=id&language=lang&limit=100.",
        examples=["file:///data/eval/parliament.jsonl"],
    )
    group: Group = Field("other", description="The group average that includes this dataset.")
    language: Language | None = Field(
        None,
        description="Language of this dataset. Default: the manifest's, else the evaluation's.",
    )
    task: Task | None = Field(None, description="Task for this dataset. Default: the evaluation's.")
    normalizer: NormalizerName | None = Field(
        None, description="Normaliser for this dataset. Default: the evaluation's."
    )


class Reference(_Model):
    """Another checkpoint to measure, such as one that was trained on all domains."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="Name in results.",
        examples=["full-ft"],
    )
    uri: str = Field(
        min_length=1, max_length=2048, description="Where the model's folder is, as for a merge."
    )


def unique(what: str, names: Sequence[str]) -> None:
    """Raise ValueError if a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f'Two {what} are called "{name}"; rename one')
        seen.add(name)


# What stands for several fields of a measurement. `open_asr` decodes and counts as the Open ASR
# Leaderboard does with Whisper: transformers/run_whisper.sh and run_eval.py of its repository.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "open_asr": {
        "normalizer": "open_asr",
        "language": "en",
        "task": "transcribe",
        "num_beams": 1,
        "search": "default",
        "batch_size": 64,
    }
}
Preset = Literal["open_asr"]


class Measurement(_Model):
    """Which datasets to decode, and how."""

    preset: Preset | None = Field(
        None,
        exclude=True,
        description="Stands for other fields, which are stored instead of it; a field that is "
        "given takes precedence. open_asr, as the Open ASR Leaderboard counts: normalizer "
        '"open_asr" (compounds joined), language "en" where neither the dataset nor its manifest '
        "gives one, num_beams 1, batch_size 64.",
    )
    datasets: tuple[DatasetSpec, ...] = Field(
        min_length=1, max_length=64, description="The datasets; their names must differ."
    )
    language: Language | None = Field(
        None,
        description="ISO 639 code of the spoken language. Multilingual checkpoints detect it if "
        "neither the evaluation, the dataset nor its manifest gives one; other checkpoints are not "
        "told it.",
    )
    task: Task = Field("transcribe", description="transcribe, or translate into English.")
    normalizer: NormalizerName = Field(
        "basic",
        description="Text normalisation before scoring: none, basic and english (Whisper's), "
        "open_asr (the Open ASR Leaderboard's), or a language's name (basic, with numbers spelled "
        "out).",
    )
    num_beams: int = Field(
        5, ge=1, le=20, description="Beam width; 1 decodes greedily, as CTC models always do."
    )
    search: Search = Field(
        "default",
        description="temperature_fallback decodes loops and unlikely transcripts again at rising "
        "temperatures, as OpenAI's Whisper does; seeded, so repeatable.",
    )
    voice_activity: bool = Field(
        False,
        description="Find the speech in audio longer than the checkpoint's window first, and "
        "decode only that. Workers need afluente[vad].",
    )
    backend: Backend = Field(
        "default",
        description="What decodes. ctranslate2_int8, ctranslate2_float16 and ctranslate2_float32 "
        "convert every system, and decode it with CTranslate2, as faster-whisper would.",
    )
    batch_size: int = Field(16, ge=1, le=256, description="Utterances decoded at once.")

    @model_validator(mode="before")
    @classmethod
    def _expanded(cls, value: Any) -> Any:
        named = value.get("preset") if isinstance(value, dict) else None
        if not isinstance(named, str) or named not in PRESETS:
            return value
        return {
            **PRESETS[named],
            **{name: given for name, given in value.items() if name != "preset"},
        }

    @field_validator("backend")
    @classmethod
    def _without_fallback(cls, value: Backend, info: ValidationInfo) -> Backend:
        if value != "default" and info.data.get("search") == "temperature_fallback":
            raise ValueError(f"{value} has no temperature_fallback here; leave search out")
        return value

    @field_validator("datasets")
    @classmethod
    def _names_differ(cls, value: tuple[DatasetSpec, ...]) -> tuple[DatasetSpec, ...]:
        unique("datasets", [dataset.name for dataset in value])
        return value

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs of the datasets' manifests."""
        return tuple(dataset.uri for dataset in self.datasets)

    def decoding_of(self, dataset: DatasetSpec) -> DecodingOptions:
        """Return the decoding settings of a dataset, whose language and task take precedence."""
        return DecodingOptions(
            num_beams=self.num_beams,
            search=self.search,
            voice_activity=self.voice_activity,
            backend=self.backend,
            batch_size=self.batch_size,
            language=dataset.language,
            default_language=self.language,
            task=dataset.task or self.task,
        )

    def normalizer_of(self, dataset: DatasetSpec) -> NormalizerName:
        """Return the normaliser of a dataset."""
        return dataset.normalizer or self.normalizer


class EvaluationSpec(Measurement):
    """Which datasets to decode, how, and what to compare the merge with."""

    @property
    def uris(self) -> tuple[str, ...]:
        """The URIs of the datasets' manifests, and of the references."""
        return (*super().uris, *(reference.uri for reference in self.references))

    compare_with: tuple[str, ...] = Field(
        ("base", "checkpoints"),
        max_length=64,
        description="Other systems to decode with the same settings: "
        '"base", "checkpoints" (every expert) or "merge://{id}".',
    )
    references: tuple[Reference, ...] = Field(
        (),
        max_length=32,
        description="Further checkpoints to decode and to compare with, by names of your own.",
    )
    gate: GateSpec | None = Field(
        None, description="Limits on the results; the verdict is `gate.passed`."
    )

    @field_validator("references")
    @classmethod
    def _references_differ(cls, value: tuple[Reference, ...]) -> tuple[Reference, ...]:
        unique("references", [reference.name for reference in value])
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
        named = [reference.name for reference in info.data.get("references", ())]
        if (
            value.max_regression
            and needed not in info.data["compare_with"]
            and (value.against not in named)
        ):
            raise ValueError(
                f'Regressions against "{value.against}" need "{needed}" in compare_with'
            )
        return value


def unknown_set(name: str, known: Sequence[str]) -> str:
    """Return the message for a gate that names an unknown dataset."""
    listed = ", ".join(known) or "none yet"
    return f'There is no set "{name}".{did_you_mean(name, known)} Sets: {listed}'


class DecodingOptions(_Model):
    """How one dataset is decoded; `dtype` None means float16 on a GPU and float32 elsewhere."""

    num_beams: int = Field(5, ge=1, le=20)
    search: Search = "default"
    voice_activity: bool = False
    backend: Backend = "default"
    batch_size: int = Field(16, ge=1, le=256)
    language: Language | None = None
    default_language: Language | None = None
    task: Task = "transcribe"
    dtype: Dtype | None = None
    max_audio_seconds: float = Field(7200.0, gt=0, description="Longer audio is skipped.")

    def language_of(self, utterance: Utterance) -> str | None:
        """Return the language: the dataset's, else the utterance's, else the evaluation's."""
        return self.language or utterance.language or self.default_language


class Utterance(_Model):
    """One line of a manifest; `audio` is the path as the manifest writes it.

    `channel` counts from 0; None averages all channels.
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
    """A hypothesis and the seconds it took to decode, as the cache stores them.

    `detected_language` is set if the model was not told the language.
    """

    hypothesis: str
    decode_seconds: float
    detected_language: str | None = None


class TranscriptCache(Protocol):
    """Transcripts by key (64 hexadecimal digits); they survive a crash."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, Transcript]:
        """Return the stored transcripts among the keys."""
        ...

    def put_many(self, transcripts: Mapping[str, Transcript]) -> None:
        """Store the transcripts, except where the key exists already."""
        ...


class UtteranceResult(_Model):
    """A decoded utterance; `cached` if the hypothesis is from an earlier evaluation.

    The model was told the `language`, or it is None and the model detected one.
    """

    index: int
    audio: str
    reference: str
    hypothesis: str
    audio_seconds: float
    decode_seconds: float
    cached: bool = False
    offset_seconds: float | None = None
    channel: int | None = None
    language: str | None = None
    detected_language: str | None = None
    speaker: str | None = None
    session: str | None = None


class SkippedUtterance(_Model):
    """An utterance that could not be decoded, and why."""

    index: int
    audio: str
    reason: str


class AudioWarning(_Model):
    """A decoded utterance whose audio, header and manifest disagree."""

    index: int
    audio: str
    message: str


class Fallback(_Model):
    """Thresholds for decoding an utterance again at the next temperature; OpenAI's values.

    `compression_ratio` applies to the text, `logprob` to the mean log probability of its tokens.
    Above `no_speech` and below `logprob`, the text is empty.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    logprob: float = -1.0
    no_speech: float = 0.6


class VoiceActivity(_Model):
    """How speech was found in audio longer than the window: settings and version of silero-vad.

    Speech is where its probability reaches `threshold` for `min_speech_seconds`; it ends with a
    silence of `min_silence_seconds`. `padding_seconds` are kept on both sides.
    """

    threshold: float = 0.5
    min_speech_seconds: float = 0.25
    min_silence_seconds: float = 0.1
    padding_seconds: float = 0.4
    silero_vad: str
    onnxruntime: str


# Stands in `DecodingRecord.languages` for utterances whose language the model detected.
DETECTED = "detected"
_EQUAL_BACKENDS = frozenset({"transformers", "afluente"})


class DecodingRecord(_Model):
    """The settings used, as results show them; the model detected the language if it is None.

    `languages` has the languages of a set whose utterances were told different ones; `language` is
    None then.

    Two backends find the same hypotheses: `transformers` is that library's `generate`, `afluente`
    our own search for audio of a single window. Others are named after their format.
    `checkpoint_settings` are the settings from the checkpoint's files that can change a hypothesis,
    by transformers' names. It is None, like
    `search`, in results from before these fields were recorded.
    """

    backend: str = "transformers"
    search: Literal["greedy", "beam", "temperature_fallback"] | None = None
    num_beams: int
    language: str | None
    languages: tuple[str, ...] | None = None
    task: Task | None
    dtype: Dtype
    device_type: str = "cpu"
    versions: dict[str, str] = Field(default_factory=dict)
    checkpoint_settings: dict[str, str] | None = None
    fallback: Fallback | None = None
    voice_activity: VoiceActivity | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The settings that determine hypotheses, as text; results are comparable if they agree.

        They include the checkpoint's own settings, and the backend if it is another runtime.
        Results from before the checkpoint's settings were recorded are comparable only with each
        other.
        """
        own = self.checkpoint_settings
        if own is None:
            own = {"checkpoint_settings": "not recorded"}
        if self.voice_activity:
            own = {**own, "voice_activity": str(self.voice_activity)}
        return {
            "search": f"temperature_fallback ({self.fallback})" if self.fallback else "default",
            "num_beams": str(self.num_beams),
            "language": " ".join(self.languages or (str(self.language),)),
            "task": str(self.task),
            "dtype": self.dtype,
            **({} if self.backend in _EQUAL_BACKENDS else {"backend": self.backend}),
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
        """`partial` if utterances were skipped, `failed` if none was decoded."""
        if not self.utterances:
            return "failed"
        return "partial" if self.skipped else "succeeded"


class EvaluatedDataset(_Model):
    """A result with its dataset's name, group and normaliser.

    `evaluation_id` is set when the result is read from the database.
    """

    evaluation_id: str | None = None
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
        """Sum of substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def reference_units(self) -> int:
        """Length of the reference: N in the error rate."""
        return self.substitutions + self.deletions + self.hits

    @property
    def rate(self) -> float | None:
        """Errors divided by reference units, as a fraction; None for an empty reference."""
        return self.errors / self.reference_units if self.reference_units else None

    @property
    def rates(self) -> tuple[float, float, float] | None:
        """Substitutions, deletions and insertions divided by reference units, like `rate`."""
        if not (units := self.reference_units):
            return None
        return (self.substitutions / units, self.deletions / units, self.insertions / units)

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
