"""The body of `POST /merges`, which is also the recipe of the command line."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from app.contract.calibration import CalibrationSpec
from app.contract.evaluation import EvaluationSpec
from app.contract.formats import Format

RESERVED_NAMES = frozenset({"base", "merge"})
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(B|KB|MB|GB|TB|KIB|MIB|GIB|TIB)?", re.IGNORECASE)
_MOST_WILDCARDS = 32
_SIZE_LIMIT = 2**63
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _uri_alone(value: object) -> object:
    return {"uri": value} if isinstance(value, str) else value


class CheckpointRef(_Model):
    """A Hugging Face model directory: `config.json` and `model.safetensors` (or shards)."""

    uri: str = Field(
        min_length=1,
        max_length=2048,
        description="Where the folder is: a URI of a scheme that the operator allows.",
        examples=["file:///models/ft/telephone"],
    )
    name: str | None = Field(
        None,
        pattern=_NAME,
        description="Name in results. Default: the URI's last segment.",
        examples=["telephone"],
    )
    weight: float | None = Field(
        None, description="Merging weight. Default: 1. Refused by methods without weights."
    )
    form: Literal["difference"] | None = Field(
        None,
        description="`difference`: the weights are a fine-tuned checkpoint's minus the base's. "
        "Default: a full checkpoint or an adapter, as its files say.",
    )

    @field_validator("name")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value is not None and value.lower() in RESERVED_NAMES:
            raise ValueError(f'The name "{value}" is reserved; choose another')
        return value


Checkpoint = Annotated[
    CheckpointRef, BeforeValidator(_uri_alone, json_schema_input_type=str | CheckpointRef)
]


class Rule(_Model):
    """Another method for tensors that match a glob; `keep_base` copies the reference's tensor."""

    match: str = Field(
        min_length=1,
        max_length=500,
        description="Shell glob on tensor names; the first rule that matches wins.",
        examples=["model.decoder.embed_*"],
    )
    method: str = Field(description="A method's name, or `keep_base`.", examples=["keep_base"])
    parameters: dict[str, Any] = Field(default_factory=dict, description="The method's parameters.")
    weights: tuple[float, ...] | None = Field(
        None,
        description="The checkpoints' weights for these tensors, in order. Default: their own.",
    )

    @field_validator("match")
    @classmethod
    def _few_wildcards(cls, value: str) -> str:
        # Every tensor is matched against every rule, and wildcards make each match slower.
        if sum(map(value.count, "*?[")) > _MOST_WILDCARDS:
            raise ValueError(f"A glob may have at most {_MOST_WILDCARDS} wildcards (*, ?, [)")
        return value


class OutputSpec(_Model):
    """How the artifact is written."""

    dtype: Literal["float32", "float16", "bfloat16"] | None = Field(
        None, description="dtype of every floating-point tensor. Default: the reference's."
    )
    max_shard_size: str = Field(
        "5GB", description="Largest size of a safetensors file: a number with KB, MB, GB, GiB…"
    )
    form: Literal["lora"] | None = Field(
        None,
        description="`lora`: a PEFT adapter of the base, where task vectors of adapters only are "
        "merged. Default: full weights.",
    )
    rank: int | None = Field(
        None, ge=1, le=4096, description="Rank of that adapter; needed for it, and only for it."
    )
    also: tuple[Format, ...] = Field(
        (),
        max_length=3,
        description="Formats of other runtimes that the artifact has too, each in a folder of this "
        "name. ctranslate2_int8, ctranslate2_float16 and ctranslate2_float32 are Whisper for "
        "CTranslate2, as faster-whisper loads it.",
        examples=[["ctranslate2_int8"]],
    )

    @field_validator("also")
    @classmethod
    def _each_once(cls, value: tuple[Format, ...], info: ValidationInfo) -> tuple[Format, ...]:
        if value and info.data.get("form") == "lora":
            raise ValueError(f'{value[0]} is made of full weights; leave `form: "lora"` out')
        return tuple(dict.fromkeys(value))

    @field_validator("max_shard_size")
    @classmethod
    def _readable(cls, value: str) -> str:
        parse_size(value)
        return value

    @model_validator(mode="after")
    def _rank_of_an_adapter(self) -> Self:
        if (self.form == "lora") != (self.rank is not None):
            raise ValueError('`rank` goes with `form: "lora"`, and that needs it')
        return self

    @property
    def max_shard_bytes(self) -> int:
        """`max_shard_size` in bytes."""
        return parse_size(self.max_shard_size)


def parse_size(text: str) -> int:
    """Return the size in bytes of `5GB`, `500 MB` or `2GiB`; ValueError if unreadable."""
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[(found[2] or "B").upper()]) if found else 0
    if not 1 <= size < _SIZE_LIMIT:
        raise ValueError(f'"{text[:40]}" is not a size such as "5GB" or "500MB"')
    return size


class MergeRequest(_Model):
    """A merge: checkpoints, a method, and what to do with the result."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "three-domains",
                    "base": "file:///models/whisper-base",
                    "checkpoints": [
                        {"uri": "file:///models/ft/parliament", "name": "parliament"},
                        "file:///models/ft/telephone",
                    ],
                    "method": "boosted_tsv_m",
                    "parameters": {"scaling_coefficient": 1.0, "beta": 0.3},
                }
            ]
        }
    )

    name: str | None = Field(
        None, min_length=1, max_length=200, description="A name for lists and reports."
    )
    base: Checkpoint | None = Field(
        None, description="The pretrained checkpoint that the others were fine-tuned from."
    )
    checkpoints: tuple[Checkpoint, ...] = Field(
        min_length=1, description="The fine-tuned checkpoints (experts), in order."
    )
    method: str = Field(description="See GET /methods.", examples=["boosted_tsv_m"])
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="The method's parameters; GET /methods/{name} has their schema.",
    )
    rules: tuple[Rule, ...] = Field((), max_length=200, description="Exceptions by tensor name.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of randomised methods.")
    output: OutputSpec = Field(OutputSpec(), description="How the artifact is written.")
    calibration: CalibrationSpec | None = Field(
        None,
        description="Speech of the experts' domains, for methods that need it (`needs_calibration` "
        "in GET /methods). None of it may be in the evaluation's datasets.",
    )
    evaluation: EvaluationSpec | None = Field(
        None, description="Word error rates to measure when the merge is done."
    )
    metadata: dict[str, str] = Field(
        default_factory=dict,
        max_length=32,
        description="Up to 32 strings of your own, stored unchanged.",
    )

    @field_validator("base")
    @classmethod
    def _base_is_plain(cls, value: CheckpointRef | None) -> CheckpointRef | None:
        if value is not None and value.weight is not None:
            raise ValueError("The base takes no weight; scale the method instead")
        if value is not None and value.form is not None:
            raise ValueError("The base is a full checkpoint; it has no form")
        return value

    @field_validator("metadata")
    @classmethod
    def _short_metadata(cls, value: dict[str, str]) -> dict[str, str]:
        for key, text in value.items():
            if len(key) > 64 or len(text) > 512:
                raise ValueError("Keys may have at most 64 characters, values at most 512")
        return value
