"""What each field of a Whisper checkpoint's JSON files means here: kept, dropped or refused.

A field of the tables is kept if its value is sound, and refused by name if not; any other field is
dropped. No library, artifact or decoder sees more than what this module returns.
(generation.py beside it has the table of generation_config.json.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, TypeAdapter, ValidationError

from app.contract.problems import problems_of
from app.sources.architectures.architecture import (
    CONFIG,
    MOST_CONFIG_BYTES,
    PREPROCESSOR,
    PROCESSOR,
    SAMPLE_RATE,
    TOKENIZER_CONFIG,
)
from app.sources.architectures.whisper import generation

FEATURE_FILES = (PREPROCESSOR, PROCESSOR)

# The most bytes of each file besides weights, several times what any Whisper has.
MAX_BYTES: Mapping[str, int] = {
    CONFIG: MOST_CONFIG_BYTES,
    generation.FILE: generation.MAX_BYTES,
    "tokenizer.json": 2**24,
    TOKENIZER_CONFIG: 2**22,
    "vocab.json": 2**23,
    "merges.txt": 2**23,
    "normalizer.json": 2**20,
    "added_tokens.json": 2**20,
    "special_tokens_map.json": 2**20,
    # The first Whispers store their mel filters here.
    PREPROCESSOR: 2**22,
    PROCESSOR: 2**22,
}
_SHOWN = 10
# The activations that transformers knows and that have no weights of their own.
_Activation = Literal[
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
    "gelu_python_tanh", "gelu_pytorch_tanh", "laplace", "leaky_relu", "linear", "mish",
    "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
]  # fmt: skip
_Flag = Annotated[bool, Field(strict=True)]
_Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
_Count = Annotated[int, Field(strict=True, ge=1)]
_TokenId = Annotated[int, Field(strict=True, ge=0, le=2**31 - 1)]
_Name = Annotated[str, Field(strict=True, max_length=200)]
_Token = Annotated[str, Field(strict=True, max_length=1000)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class ModelConfig(_Table):
    """The fields of config.json that describe the model. Settings of its training are dropped."""

    model_type: _Name | None = None
    architectures: Annotated[list[_Name], Field(max_length=10)] | None = None
    d_model: Annotated[_Count, Field(le=16_384)] | None = None
    encoder_layers: Annotated[_Count, Field(le=1024)] | None = None
    decoder_layers: Annotated[_Count, Field(le=1024)] | None = None
    encoder_attention_heads: Annotated[_Count, Field(le=1024)] | None = None
    decoder_attention_heads: Annotated[_Count, Field(le=1024)] | None = None
    encoder_ffn_dim: Annotated[_Count, Field(le=65_536)] | None = None
    decoder_ffn_dim: Annotated[_Count, Field(le=65_536)] | None = None
    num_mel_bins: Annotated[_Count, Field(le=1024)] | None = None
    vocab_size: Annotated[_Count, Field(le=1_000_000)] | None = None
    # Whisper's are 1,500 (30 s) and 448; what is decoded is padded to the first.
    max_source_positions: Annotated[_Count, Field(le=6000)] | None = None
    max_target_positions: Annotated[_Count, Field(le=4096)] | None = None
    activation_function: _Activation | None = None
    # No decoder here scales, nor does that of transformers.
    scale_embedding: Literal[False] | None = None
    is_encoder_decoder: Literal[True] | None = None
    tie_word_embeddings: _Flag | None = None
    dropout: _Fraction | None = None
    attention_dropout: _Fraction | None = None
    activation_dropout: _Fraction | None = None
    encoder_layerdrop: _Fraction | None = None
    decoder_layerdrop: _Fraction | None = None
    init_std: _Fraction | None = None
    median_filter_width: Annotated[_Count, Field(le=99)] | None = None
    bos_token_id: _TokenId | None = None
    eos_token_id: _TokenId | Annotated[list[_TokenId], Field(max_length=16)] | None = None
    pad_token_id: _TokenId | None = None
    decoder_start_token_id: _TokenId | None = None


class FeatureExtractor(_Table):
    """The fields of a feature extractor that decide its features."""

    feature_extractor_type: Literal["WhisperFeatureExtractor"] = "WhisperFeatureExtractor"
    feature_size: Annotated[_Count, Field(le=1024)] = 80
    sampling_rate: Literal[16_000] = 16_000
    hop_length: Annotated[_Count, Field(le=4096)] = 160
    n_fft: Annotated[_Count, Field(ge=16, le=4096)] = 400
    chunk_length: Annotated[_Count, Field(le=120)] = 30
    padding_side: Literal["right"] = "right"
    padding_value: Annotated[float, Field(strict=True, ge=-1, le=1, allow_inf_nan=False)] = 0.0
    dither: _Fraction = 0.0
    return_attention_mask: _Flag = False


class _AddedToken(_Table):
    content: _Token
    lstrip: _Flag | None = None
    normalized: _Flag | None = None
    rstrip: _Flag | None = None
    single_word: _Flag | None = None
    special: _Flag | None = None
    kind: Annotated[Literal["AddedToken"] | None, Field(alias="__type")] = None


_AnyToken = _Token | _AddedToken
_Tokens = Annotated[list[_AnyToken], Field(max_length=20_000)]


class _SpecialTokens(_Table):
    """The fields of special_tokens_map.json."""

    bos_token: _AnyToken | None = None
    eos_token: _AnyToken | None = None
    unk_token: _AnyToken | None = None
    pad_token: _AnyToken | None = None
    additional_special_tokens: _Tokens | None = None


class _TokenizerConfig(_SpecialTokens):
    """The fields of tokenizer_config.json; no path, class or code is among them."""

    add_prefix_space: _Flag | None = None
    add_bos_token: _Flag | None = None
    errors: Literal["replace", "strict", "ignore"] | None = None
    # A tokenizer without a limit says 10**30.
    model_max_length: (
        Annotated[float, Field(strict=True, ge=1, le=1e31, allow_inf_nan=False)] | None
    ) = None
    clean_up_tokenization_spaces: _Flag | None = None
    split_special_tokens: _Flag | None = None
    return_attention_mask: _Flag | None = None
    padding_side: Literal["left", "right"] | None = None
    truncation_side: Literal["left", "right"] | None = None
    language: _Name | None = None
    task: Literal["transcribe", "translate"] | None = None
    predict_timestamps: _Flag | None = None
    extra_special_tokens: (
        _Tokens | Annotated[dict[_Name, _AnyToken], Field(max_length=1000)] | (None)
    ) = None
    added_tokens_decoder: (
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], _AddedToken] | None
    ) = None


_TABLES: Mapping[str, TypeAdapter[Any]] = {
    CONFIG: TypeAdapter(ModelConfig),
    TOKENIZER_CONFIG: TypeAdapter(_TokenizerConfig),
    "special_tokens_map.json": TypeAdapter(_SpecialTokens),
    "added_tokens.json": TypeAdapter(RootModel[dict[_Token, _TokenId]]),
    "normalizer.json": TypeAdapter(RootModel[dict[_Token, _Token]]),
}
_FEATURES = TypeAdapter(FeatureExtractor)
# The files that are read whole and reduced.
DOCUMENTS = (*_TABLES, generation.FILE, *FEATURE_FILES)
# Where there is no generation_config.json, as in old checkpoints, config.json says how to decode.
_DECODING = frozenset(generation.GenerationSettings.model_fields) | frozenset(generation.CARRIED)


def model_config_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a sound config.json that describe the model."""
    return {name: config[name] for name in ModelConfig.model_fields if name in config}


def read_config(
    document: Mapping[str, Any], *, decodes: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Return the known fields of config.json, and what is wrong with the file.

    `decodes` says that it holds the settings of decoding too.
    """
    kept, problems = _validated(_TABLES[CONFIG], CONFIG, document)
    if not problems:
        problems = [f"{CONFIG} says {problem}" for problem in _contradictions(kept)]
    if decodes:
        settings = {
            name: value
            for name, value in document.items()
            if name in _DECODING and name not in ModelConfig.model_fields
        }
        kept |= settings
    return kept, problems


def read_documents(
    documents: Mapping[str, Mapping[str, Any]], config: Mapping[str, Any]
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Return the other files by name, with their known fields, and what is wrong with them.

    `config` is that of `read_config`. generation_config.json stays whole: another module reduces
    it. Whichever file has the feature extractor, its fields are under PREPROCESSOR.
    """
    kept: dict[str, Mapping[str, Any]] = {}
    problems: list[str] = []
    for name, document in documents.items():
        if name in _TABLES:
            kept[name], wrong = _validated(_TABLES[name], name, document)
            problems += wrong
    if generation.FILE in documents:
        kept[generation.FILE] = documents[generation.FILE]
    features, wrong = _features_of(documents)
    bins = config.get("num_mel_bins")
    if features is not None:
        kept[PREPROCESSOR] = features
        if bins is not None and features["feature_size"] != bins:
            problems.append(
                f"the feature extractor makes {features['feature_size']} mel bins and config.json "
                f"says num_mel_bins {bins}; {PREPROCESSOR} or {PROCESSOR} belongs to another model"
            )
    return kept, problems + wrong


def _features_of(
    documents: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the feature extractor's fields, or None where no file has them."""
    # Where both files have them, the newer form counts, as in transformers.
    nested = documents.get(PROCESSOR, {}).get("feature_extractor")
    if nested is not None and not isinstance(nested, Mapping):
        return None, [f"{PROCESSOR} says feature_extractor: this is not an object"]
    for name, document in ((PROCESSOR, nested), (PREPROCESSOR, documents.get(PREPROCESSOR))):
        if document is not None:
            found, problems = _validated(_FEATURES, name, document)
            return found or None, problems
    return None, []


def feature_documents(features: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return both files that say it: transformers 4 reads the one, transformers 5 the other."""
    samples = features["chunk_length"] * SAMPLE_RATE
    derived = {"n_samples": samples, "nb_max_frames": samples // features["hop_length"]}
    extractor = dict(sorted({**features, **derived}.items()))
    named = {"processor_class": "WhisperProcessor"}
    return {PREPROCESSOR: extractor | named, PROCESSOR: {"feature_extractor": extractor, **named}}


def tokenizer_config_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json in the form that transformers 4 and 5 both read."""
    kept = dict(document)
    extra = kept.get("extra_special_tokens")
    if isinstance(extra, list):
        # transformers 5 writes a list here, on which 4 fails; the older name serves both.
        del kept["extra_special_tokens"]
        kept.setdefault("additional_special_tokens", extra)
    named = {"processor_class": "WhisperProcessor", "tokenizer_class": "WhisperTokenizer"}
    return dict(sorted((kept | named).items()))


def _validated(
    table: TypeAdapter[Any], file: str, document: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    try:
        found = table.validate_python(dict(document))
    except ValidationError as error:
        return {}, [
            f"{file} says {problem.param}: {problem.message.removesuffix('.')}"
            for problem in problems_of(error)[:_SHOWN]
        ]
    return table.dump_python(found, mode="json", by_alias=True, exclude_none=True), []


def _contradictions(config: Mapping[str, Any]) -> list[str]:
    """Return where the sizes and token ids of a sound config.json do not fit each other."""
    problems = []
    d = config.get("d_model")
    for side in ("encoder", "decoder"):
        heads = config.get(f"{side}_attention_heads")
        if d and heads and d % heads:
            problems.append(f"d_model {d}, which is no multiple of {side}_attention_heads {heads}")
    if d and (d % 2 or d < 4):
        problems.append(f"d_model {d}; an even number of 4 or more is needed")
    size = config.get("vocab_size")
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        found = config.get(name)
        tokens = found if isinstance(found, list) else [] if found is None else [found]
        if size and any(token >= size for token in tokens):
            problems.append(f"{name} {found}; the vocabulary has {size:,} tokens")
    return problems
