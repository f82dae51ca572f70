"""What each setting of Whisper's generation_config.json means here: used, ignored or refused.

No library sees the file itself: decoding and artifacts get what this module has checked. A field
that is in none of the tables is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from app.contract.languages import WHISPER_LANGUAGES
from app.contract.problems import problems_of
from app.sources.architectures.architecture import GENERATION_CONFIG

FILE = GENERATION_CONFIG
# A Whisper's has 4 kB.
MAX_BYTES = 2**18
_SHOWN = 10
# Whisper's own rule: vocabularies from this size on have the language tokens in use.
_MULTILINGUAL_VOCABULARY = 51_865
_MOST = 2**31 - 1
_TokenId = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
_Count = Annotated[int, Field(strict=True, ge=1, le=_MOST)]
_Number = Annotated[int, Field(strict=True, ge=0, le=_MOST)]
_Factor = Annotated[float, Field(strict=True, gt=0, le=1000, allow_inf_nan=False)]
_Tokens = Annotated[list[Annotated[int, Field(strict=True)]], Field(fail_fast=True)]
_OneOrMore = BeforeValidator(lambda value: [value] if type(value) is int else value)
_LanguageToken = Annotated[str, Field(pattern=r"^<\|[A-Za-z_-]{2,20}\|>$")]


class GenerationSettings(BaseModel):
    """The settings that are used: token ids, and what limits or weighs hypotheses."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    decoder_start_token_id: _TokenId | None = None
    eos_token_id: (
        Annotated[list[_TokenId], _OneOrMore, Field(min_length=1, max_length=16)] | None
    ) = None
    no_timestamps_token_id: _TokenId | None = None
    is_multilingual: Annotated[bool, Field(strict=True)] | None = None
    lang_to_id: Annotated[dict[_LanguageToken, _TokenId], Field(max_length=1000)] | None = None
    task_to_id: dict[Literal["transcribe", "translate"], _TokenId] | None = None

    max_length: _Count | None = None
    max_new_tokens: _Count | None = None
    min_length: _Number | None = None
    min_new_tokens: _Number | None = None
    suppress_tokens: _Tokens | None = None
    begin_suppress_tokens: _Tokens | None = None
    bad_words_ids: (
        Annotated[
            list[Annotated[list[_TokenId], Field(min_length=1, max_length=100)]],
            Field(max_length=1000),
        ]
        | None
    ) = None
    repetition_penalty: _Factor | None = None
    no_repeat_ngram_size: _Number | None = None
    length_penalty: (
        Annotated[float, Field(strict=True, ge=-100, le=100, allow_inf_nan=False)] | None
    ) = None
    early_stopping: Literal[True, False, "never"] | None = None
    renormalize_logits: Annotated[bool, Field(strict=True)] | None = None
    # Of audio longer than the window, which is decoded with timestamps.
    max_initial_timestamp_index: _Number | None = None

    @property
    def ends(self) -> tuple[int, ...]:
        """The end tokens, as a rule one; empty if none is named."""
        return tuple(dict.fromkeys(self.eos_token_id or ()))


# Settings of searches that are not done here, with the values that switch them off. Leaving one out
# would give other hypotheses than the checkpoint's author asks for.
REFUSED: Mapping[str, tuple[object, ...]] = {
    "constraints": (None, []),
    "encoder_repetition_penalty": (None, 1),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None, []),
    "guidance_scale": (None, 1),
    "max_time": (None,),
    "sequence_bias": (None, {}, []),
    "stop_strings": (None, "", []),
    "watermarking_config": (None,),
}

# Whatever these say, hypotheses are the same; why is said once for each group.
IGNORED: Mapping[str, tuple[str, ...]] = {
    "the request chooses the search: greedy, beam, or temperature fallback": (
        "assistant_ensemble_weight",
        "compression_ratio_threshold",
        "condition_on_prev_tokens",
        "diversity_penalty",
        "do_sample",
        "dola_layers",
        "epsilon_cutoff",
        "eta_cutoff",
        "logprob_threshold",
        "min_p",
        "no_speech_threshold",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "penalty_alpha",
        "prompt_condition_type",
        "temperature",
        "top_h",
        "top_k",
        "top_p",
        "typical_p",
    ),
    "the request says language and task": ("forced_decoder_ids", "language", "task"),
    "how results are computed or returned, not which": (
        "alignment_heads",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "is_assistant",
        "low_memory",
        "max_cache_len",
        "max_matching_ngram_size",
        "median_filter_width",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "prefill_chunk_size",
        "prompt_lookup_num_tokens",
        "return_dict_in_generate",
        "return_segments",
        "return_timestamps",
        "return_token_timestamps",
        "speculation_type",
        "target_lookbehind",
        "transformers_version",
        "use_cache",
        "use_mtp",
    ),
    "no effect on Whisper: it reads sound, and its prompt is made anew": (
        "bos_token_id",
        "encoder_no_repeat_ngram_size",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "pad_token_id",
        "prev_sot_token_id",
        "remove_invalid_values",
        "token_healing",
    ),
}

# Ignored when decoding, but of the model: an artifact keeps them if they are well-formed.
CARRIED: Mapping[str, TypeAdapter[Any]] = {
    "bos_token_id": TypeAdapter(_TokenId),
    "pad_token_id": TypeAdapter(_TokenId),
    "prev_sot_token_id": TypeAdapter(_TokenId),
    "alignment_heads": TypeAdapter(
        list[Annotated[list[_Number], Field(min_length=2, max_length=2)]]
    ),
    "forced_decoder_ids": TypeAdapter(list[tuple[_Count, _TokenId | None]]),
    "language": TypeAdapter(Annotated[str, Field(strict=True, min_length=2, max_length=30)]),
    "task": TypeAdapter(Literal["transcribe", "translate"]),
    "return_timestamps": TypeAdapter(Annotated[bool, Field(strict=True)]),
    "num_beams": TypeAdapter(Annotated[int, Field(strict=True, ge=1, le=20)]),
}
_IDS = ("decoder_start_token_id", "eos_token_id", "bos_token_id", "pad_token_id")


def generation_problems(
    document: Mapping[str, Any], config: Mapping[str, Any], file: str = FILE
) -> list[str]:
    """Return what keeps a checkpoint from being decoded by this file, field by field.

    `config` is its config.json, which says how large the vocabulary is.
    """
    problems = [
        f"{file} sets {name}, which no search here obeys; remove it from the file"
        for name, off in REFUSED.items()
        if document.get(name) not in off
    ]
    try:
        settings = GenerationSettings.model_validate(dict(document))
    except ValidationError as error:
        return problems + [
            f"{file} says {problem.param}: {problem.message.removesuffix('.')}"
            for problem in problems_of(error)[:_SHOWN]
        ]
    size = config.get("vocab_size")
    if type(size) is int:
        problems += [
            f"{file} says {name} {token}; the vocabulary has {size:,} tokens"
            for name, token in _token_ids(settings)
            if token >= size
        ][:_SHOWN]
    return problems


def generation_config_of(
    document: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what an artifact's generation_config.json holds: known fields with sound values.

    `document` is the reference's, without `generation_problems`, or None if it has none; `config`
    is its config.json.
    """
    size = int(config["vocab_size"])
    document = _stated(document, config)
    settings = GenerationSettings.model_validate(dict(document)).model_dump(exclude_none=True)
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if name in settings:
            settings[name] = _inside(settings[name], size)
    if len(settings.get("eos_token_id", ())) == 1:
        (settings["eos_token_id"],) = settings["eos_token_id"]
    for name, kind in CARRIED.items():
        try:
            carried = kind.dump_python(kind.validate_python(document[name]), mode="json")
        except (KeyError, ValidationError):
            continue
        if not name.endswith("_token_id") or carried < size:
            settings[name] = carried
    return dict(sorted((_ids_of(config) | settings).items()))


def settings_of(
    document: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> GenerationSettings:
    """Return the settings that a checkpoint without `generation_problems` is decoded by.

    `document` is its generation_config.json. Without one config.json says them, as old checkpoints
    have it; a token id that the file leaves out is that of config.json too.
    """
    stated = _stated(document, config)
    named = {name: value for name, value in stated.items() if value is not None}
    return GenerationSettings.model_validate(_ids_of(config) | named)


def is_multilingual(settings: GenerationSettings, config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is told the language: as it says, else as its tokens suggest."""
    if settings.is_multilingual is not None:
        return settings.is_multilingual
    return bool(settings.lang_to_id) or int(config["vocab_size"]) >= _MULTILINGUAL_VOCABULARY


def languages_of(
    document: Mapping[str, Any] | None, config: Mapping[str, Any]
) -> frozenset[str] | None:
    """Return the codes of the languages that a checkpoint knows; None if it is English-only.

    `document` is its generation_config.json; one that lists none is taken to know Whisper's.
    """
    settings = settings_of(document, config)
    if not is_multilingual(settings, config):
        return None
    return frozenset(token.strip("<|>") for token in settings.lang_to_id or ()) or WHISPER_LANGUAGES


def constraints(
    settings: GenerationSettings,
    config: Mapping[str, Any],
    *,
    num_beams: int,
    prompt: int,
    timestamps: bool = False,
) -> dict[str, Any]:
    """Return the settings that can change a hypothesis, in one spelling each; {} if none can.

    `prompt` is the number of tokens that an utterance begins with, `timestamps` says whether any is
    decoded with timestamps. The names are transformers', and
    so are the values, token lists being sorted: `max_new_tokens` stands for either limit of length,
    `min_new_tokens` for either least length.
    """
    size, limit = int(config["vocab_size"]), int(config["max_target_positions"])
    found: dict[str, Any] = {}
    longest = settings.max_new_tokens or settings.max_length
    # As transformers counts: at most half of the positions are taken as prompt.
    if longest is not None and longest + min(prompt, limit // 2 - 1) < limit:
        found["max_new_tokens"] = longest
    shortest = max(settings.min_new_tokens or 0, (settings.min_length or 0) - prompt)
    if shortest > 0:
        found["min_new_tokens"] = min(shortest, limit)
    always = _inside(settings.suppress_tokens or (), size)
    first = sorted({*_inside(settings.begin_suppress_tokens or (), size)} - {*always})
    for name, tokens in (("suppress_tokens", always), ("begin_suppress_tokens", first)):
        if tokens:
            found[name] = tokens
    banned = sorted(words for words in settings.bad_words_ids or () if max(words) < size)
    if banned:
        found["bad_words_ids"] = banned
    if settings.repetition_penalty not in (None, 1):
        found["repetition_penalty"] = settings.repetition_penalty
    if 0 < (settings.no_repeat_ngram_size or 0) <= limit:
        found["no_repeat_ngram_size"] = settings.no_repeat_ngram_size
    if len(settings.ends) > 1:
        found["eos_token_id"] = list(settings.ends)
    if timestamps and settings.max_initial_timestamp_index is not None:
        found["max_initial_timestamp_index"] = settings.max_initial_timestamp_index
    if num_beams > 1:
        if settings.length_penalty not in (None, 1):
            found["length_penalty"] = settings.length_penalty
        for name in ("early_stopping", "renormalize_logits"):
            if getattr(settings, name):
                found[name] = getattr(settings, name)
    return found


def summarize(value: object) -> str:
    """Return a setting as results show and compare it: long lists by their number and digest."""
    if isinstance(value, list) and len(value) > 8:
        digest = hashlib.sha256(repr(value).encode()).hexdigest()
        return f"{len(value)} entries (sha256 {digest[:12]})"
    return str(value)


def _stated(document: Mapping[str, Any] | None, config: Mapping[str, Any]) -> Mapping[str, Any]:
    if document is not None:
        return document
    # transformers' own default, for the sake of equal transcripts.
    return {"begin_suppress_tokens": [220, 50256], **config}


def _ids_of(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the token ids that config.json names, as far as they are in the vocabulary."""
    named = {name: config.get(name) for name in _IDS}
    return {
        name: token
        for name, token in named.items()
        if type(token) is int and 0 <= token < config["vocab_size"]
    }


def _inside(tokens: Iterable[int], size: int) -> list[int]:
    """Return the tokens of the vocabulary, each once, in order; others cannot be said anyway."""
    return sorted({token for token in tokens if 0 <= token < size})


def _token_ids(settings: GenerationSettings) -> Iterable[tuple[str, int]]:
    for name in ("decoder_start_token_id", "no_timestamps_token_id"):
        if (token := getattr(settings, name)) is not None:
            yield name, token
    for token in settings.ends:
        yield "eos_token_id", token
    for table in ("lang_to_id", "task_to_id"):
        for key, token in (getattr(settings, table) or {}).items():
            yield f"{table}[{key}]", token
