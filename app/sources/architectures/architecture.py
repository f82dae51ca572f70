"""What Afluente must know of a family of models, with the defaults for one it does not know.

A new family is a subclass that overrides what it knows better; `registry.py` lists it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from app.contract.problems import shown
from app.contract.tensors import TensorHeader

if TYPE_CHECKING:
    from app.sources.checkpoint import ResolvedCheckpoint

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
MOST_CONFIG_BYTES = 2**20
# What models of speech take, in Hz.
SAMPLE_RATE = 16_000

Task = Literal["seq2seq", "ctc"]
Tensors = Mapping[str, TensorHeader]
Shapes = Mapping[str, tuple[int, ...]]

_MODEL_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_DEEPEST = 20
# Loading a config makes lists of these lengths.
_MOST = {"layer": 10_000, "num_labels": 100_000}
# Fields that name code or a file of the machine that wrote them. A chat template is a program too.
_DROPPED = re.compile(
    r"auto_map|custom_pipelines|trust_remote_code|chat_template|_?name_or_path"
    r"|_?attn_implementation\w*|(vocab|merges|tokenizer|special_tokens_map|added_tokens|spm)_file"
)
# Their keys are tokens, not fields.
_TABLES = frozenset({"added_tokens.json", "normalizer.json"})
_NOTHING = re.compile(r"(?!)")
# Fields in which checkpoints of one model may differ: how it was trained, how text is generated
# with it, and which software wrote the file.
_FREE = re.compile(
    r".*(dropout|layerdrop|_prob|loss|temperature|token_id|token_ids|_version|_class|gradient).*"
    r"|mask_.*|apply_spec_augment|ctc_zero_infinity|num_negatives|initializer_.*|init_std"
    r"|dtype|torch_dtype|use_cache|use_bfloat16|output_(attentions|hidden_states|scores)"
    r"|return_dict|label2id|finetuning_task|problem_type|task_specific_params|tokenizer_class"
    r"|feature_extractor_type|image_processor_type|_.*"
)
# Two spellings of one tensor: transformers reads both, and has written each at some time.
_SPELLINGS = (
    (".weight_g", ".parametrizations.weight.original0"),
    (".weight_v", ".parametrizations.weight.original1"),
    (".LayerNorm.gamma", ".LayerNorm.weight"),
    (".LayerNorm.beta", ".LayerNorm.bias"),
)
# Constants that old versions of transformers stored and new ones compute.
_COMPUTED = (".position_ids", ".rotary_emb.inv_freq")
# How many batches a batch norm was trained on: no model uses it after training.
_COUNTS = (".num_batches_tracked",)


@dataclass(frozen=True)
class Description:
    """A checkpoint's JSON files, reduced to what is kept, and what is wrong with them.

    `languages` are the codes of the languages that it can be told, None if it is told none.
    """

    config: Mapping[str, Any]
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    languages: frozenset[str] | None = None
    problems: Sequence[str] = ()


class Difference(NamedTuple):
    """A field of a JSON file that two checkpoints say differently."""

    file: str
    field: str
    theirs: object
    ours: object


@dataclass(frozen=True)
class Lack:
    """Files that belong together and that a checkpoint lacks.

    It takes them from the reference to be decoded. `needed` says in an error what the reference
    itself cannot do without; None if it can. With `merges` it can be merged without, but not be
    decoded.
    """

    files: tuple[str, ...]
    needed: str | None
    merges: bool = False


class Architecture:
    """Any Hugging Face model in safetensors, as far as its tensors and config tell.

    Such checkpoints merge if their tensors have equal names and shapes and their config.json agree.
    Nothing here can decode them.
    """

    name: ClassVar[str] = "any"
    model_class: ClassVar[str] = ""
    """The model's class in transformers, if the family has one alone."""

    task: ClassVar[Task | None] = None
    """What the decoder in worker/evaluation does with it; None if there is no decoder."""

    searches_beams: ClassVar[bool] = False
    falls_back: ClassVar[bool] = False
    translates: ClassVar[bool] = False
    """What a request may ask of the decoder: beams, temperature fallback, the task translate."""

    can_be_calibrated: ClassVar[bool] = False
    """Whether calibration sets can be used (worker/calibration/)."""

    max_bytes: ClassVar[Mapping[str, int]] = {
        CONFIG: MOST_CONFIG_BYTES,
        GENERATION_CONFIG: 2**18,
        "tokenizer.json": 2**24,
        TOKENIZER_CONFIG: 2**22,
        "vocab.json": 2**23,
        "vocab.txt": 2**23,
        "merges.txt": 2**23,
        "spiece.model": 2**24,
        "sentencepiece.bpe.model": 2**24,
        "tokenizer.model": 2**24,
        "normalizer.json": 2**20,
        "added_tokens.json": 2**20,
        "special_tokens_map.json": 2**20,
        PREPROCESSOR: 2**22,
        PROCESSOR: 2**22,
    }
    """The files used besides weights, with the most bytes of each."""

    copied: ClassVar[tuple[str, ...]] = (
        "tokenizer.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
    )
    """Those that an artifact has byte for byte; the others are JSON objects, read and reduced."""

    copied_dtypes: ClassVar[frozenset[str]] = frozenset(
        {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}
    )
    """The dtypes of tensors that are copied if they are equal in all inputs."""

    token_rows: ClassVar[tuple[str, ...]] = ()
    """The tensors with a row for each token, which may have more in an expert than in the base."""

    tokenizer_files: ClassVar[tuple[str, ...]] = ()
    """The files that say which tokens there are; needed where `token_rows` are."""

    converts: ClassVar[bool] = False
    """Whether CTranslate2's converter is used for it."""

    @property
    def documents(self) -> tuple[str, ...]:
        """The JSON files that are read and reduced, config.json first."""
        return tuple(name for name in self.max_bytes if name not in self.copied)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json is of this family, before and after `read` reduces it."""
        return True

    def read(self, documents: Mapping[str, Mapping[str, Any]]) -> Description:
        """Return what is kept of the JSON files, by name. No code, nor a path to any, is."""
        kept: dict[str, Mapping[str, Any]] = {}
        problems = []
        for name, document in documents.items():
            try:
                kept[name] = _without(document, _NOTHING if name in _TABLES else _DROPPED)
            except _TooDeepError:
                problems.append(f"{name} has objects or lists nested more than {_DEEPEST} deep")
        return Description(kept.pop(CONFIG, {}), kept, None, problems)

    def config_problems(self, config: Mapping[str, Any]) -> list[str]:
        """Return what keeps a checkpoint with this config.json from being merged at all."""
        kind = config.get("model_type")
        problems = []
        if not isinstance(kind, str) or not _MODEL_TYPE.fullmatch(kind):
            problems.append(
                f"config.json says model_type {shown(kind)}; the name of an architecture is needed"
            )
        if config.get("quantization_config") is not None:
            problems.append(
                "config.json says quantization_config; quantized weights cannot be merged, use the "
                "checkpoint that they were made from"
            )
        return problems + [
            f"config.json says {key} {shown(value)}, more than {most:,}"
            for key, value in _fields(config)
            for named, most in _MOST.items()
            if named in key and type(value) is int and value > most
        ]

    def expected_shapes(self, config: Mapping[str, Any]) -> Shapes | None:
        """Return name and shape of every tensor, ties once; None: as the reference has them."""
        return None

    def tied(self, config: Mapping[str, Any], inputs: Sequence[Tensors]) -> Mapping[str, str]:
        """Return the tensors that are copies of another by name, where a checkpoint stores them.

        `inputs` are the headers of all checkpoints; the engine compares the copies byte for byte.
        """
        # save_pretrained leaves tied tensors out, other tools store them. One that only some
        # checkpoints store, with a row for each token, is a copy of the only one of its shape.
        if config.get("tie_word_embeddings") is False:
            return {}
        shared = {
            name: header for name, header in inputs[0].items() if all(name in i for i in inputs)
        }
        found = {}
        for tensors in inputs:
            for name, header in tensors.items():
                if name in shared or header.shape[:1] != (config.get("vocab_size"),):
                    continue
                alike = [other for other, own in shared.items() if own.shape == header.shape]
                if len(alike) == 1:
                    found[name] = alike[0]
        return found

    def left_out(self, inputs: Sequence[Tensors]) -> frozenset[str]:
        """Return the tensors that the artifact does without.

        These are counts of training, and, if not all checkpoints have them, constants that the
        library computes when a model is loaded.
        """
        names = {name for tensors in inputs for name in tensors}
        computed = {name for name in names if name.endswith(_COMPUTED)}
        counts = {name for name in names if name.endswith(_COUNTS)}
        return frozenset(counts | {n for n in computed if not all(n in i for i in inputs)})

    def spelled_as(self, reference: Tensors, tensors: Tensors) -> Tensors:
        """Return the tensors under the names that the reference has for them."""
        if tensors.keys() == reference.keys():
            return tensors
        wanted = reference.keys() - tensors.keys()
        names = {name: name for name in tensors}
        for name in tensors.keys() - reference.keys():
            names[name] = next((one for one in spellings(name) if one in wanted), name)
        return {names[name]: replace(header, name=names[name]) for name, header in tensors.items()}

    def differences(
        self, checkpoint: ResolvedCheckpoint, reference: ResolvedCheckpoint
    ) -> list[Difference]:
        """Return the fields in which a checkpoint must agree with the reference and does not."""
        compared = [(CONFIG, checkpoint.config, reference.config)]
        if PREPROCESSOR in checkpoint.documents and PREPROCESSOR in reference.documents:
            features = checkpoint.documents[PREPROCESSOR], reference.documents[PREPROCESSOR]
            compared.append((PREPROCESSOR, *features))
        return [
            Difference(file, *found)
            for file, theirs, ours in compared
            for found in _unequal(theirs, ours)
        ]

    def lacks(self, checkpoint: ResolvedCheckpoint) -> list[Lack]:
        """Return what a checkpoint is decoded with and does not have."""
        return []

    def decoding_problems(
        self, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> list[str]:
        """Return what in its JSON files keeps a checkpoint from being decoded, not from merging.

        Arguments are those of a Description.
        """
        return []

    def unconvertible(self, checkpoint: ResolvedCheckpoint) -> str | None:
        """Return why CTranslate2 would not compute what this checkpoint does; None if it would."""
        kind = checkpoint.config.get("model_type")
        return f"{kind} is not converted to CTranslate2; only Whisper is"

    def stated_ids(self, checkpoint: ResolvedCheckpoint) -> Mapping[str, int]:
        """Return the tokens whose ids the JSON files state: the tokenizer must agree."""
        return {}

    def is_english_only(self, checkpoint: ResolvedCheckpoint) -> bool:
        """Return whether it is known to write English alone."""
        return False

    def companions(
        self, config: Mapping[str, Any], documents: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Mapping[str, Any]]:
        """Return the JSON files of an artifact by name; arguments are those of a Description."""
        return {CONFIG: config, **documents}

    def summary(self, config: Mapping[str, Any]) -> dict[str, str | None]:
        """Return what a merge's record and its model card say of the architecture."""
        classes = config.get("architectures")
        name = classes[0] if isinstance(classes, list) and classes else None
        known = isinstance(name, str) and _CLASS_NAME.fullmatch(name)
        return {
            "model_type": str(config.get("model_type")),
            "model_class": name if known else None,
            "processor_class": None,
            "task": self.task,
        }


def spellings(name: str) -> list[str]:
    """Return the other names under which transformers reads a tensor."""
    pairs = (*_SPELLINGS, *(pair[::-1] for pair in _SPELLINGS))
    return [name.removesuffix(old) + new for old, new in pairs if name.endswith(old)]


class _TooDeepError(Exception):
    pass


def _without(value: Any, dropped: re.Pattern[str], deepest: int = _DEEPEST) -> Any:
    """Return a JSON value whose objects lack the dropped fields; _TooDeepError if it is nested."""
    if not isinstance(value, dict | list):
        return value
    if deepest == 0:
        raise _TooDeepError
    if isinstance(value, list):
        return [_without(item, dropped, deepest - 1) for item in value]
    kept = {key: item for key, item in value.items() if not dropped.fullmatch(key)}
    return {key: _without(item, dropped, deepest - 1) for key, item in kept.items()}


def _fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the fields of a config.json, and of the configs of the model's parts in it."""
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unequal(
    theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, object, object]]:
    """Yield the fields that both state and must have equal and do not, with their values."""
    # A field that one file does not state has the default of the version that wrote it.
    stated = dict(_fields(ours))
    for path, value in _fields(theirs):
        free = _FREE.fullmatch(path.rpartition(".")[2])
        if path in stated and value != stated[path] and not free:
            yield path, value, stated[path]
