"""Loads a checkpoint for decoding: offline, from safetensors, and with nothing made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES
from transformers.utils import logging as transformers_logging

from app.contract.errors import InvalidCheckpointError
from app.contract.evaluation import DecodingOptions, Dtype
from worker.evaluation.checkpoint import CheckpointFacts
from worker.evaluation.whisper.rules import why_not

OWN_BACKEND, TRANSFORMERS = "afluente", "transformers"
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError)


def load(
    checkpoint: Path, dtype: torch.dtype
) -> tuple[WhisperForConditionalGeneration, WhisperProcessor]:
    """Return the folder's model and processor; InvalidCheckpointError says what does not fit."""
    try:
        model, report = WhisperForConditionalGeneration.from_pretrained(
            str(checkpoint), dtype=dtype, use_safetensors=True, output_loading_info=True, **_OFFLINE
        )
        processor = WhisperProcessor.from_pretrained(str(checkpoint), **_OFFLINE)
    except _UNLOADABLE as error:
        raise InvalidCheckpointError(f"{checkpoint.name} cannot be loaded: {error}") from error
    # transformers fills what is missing with random numbers: that must never be evaluated.
    wrong = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
    if wrong:
        raise InvalidCheckpointError(
            f"{checkpoint.name} lacks tensors that its config needs: {', '.join(wrong[:5])}."
        )
    bins = processor.feature_extractor.feature_size
    if bins != model.config.num_mel_bins:
        raise InvalidCheckpointError(
            f"{checkpoint.name}: the feature extractor makes {bins} mel bins and the model takes "
            f"{model.config.num_mel_bins}; preprocessor_config.json belongs to another model."
        )
    # Dithering adds noise, and so another transcript each time.
    processor.feature_extractor.dither = 0.0
    _leave_to_the_caller(model.generation_config)
    return model, processor


def backend_of(checkpoint: Path, options: DecodingOptions, dtype: Dtype, device: str) -> str:
    """Return who decodes utterances of one window, as results name it, without loading weights.

    Both find the same hypotheses. This is the one place that decides. Raises
    InvalidCheckpointError where a config cannot be read.
    """
    try:
        with quiet():
            config = WhisperConfig.from_pretrained(str(checkpoint), **_OFFLINE)
            if (checkpoint / "generation_config.json").exists():
                own = GenerationConfig.from_pretrained(str(checkpoint), **_OFFLINE)
            else:
                own = GenerationConfig.from_model_config(config)
    except _UNLOADABLE as error:
        raise InvalidCheckpointError(f"{checkpoint.name} cannot be loaded: {error}") from error
    if dtype != "float32" or torch.device(device).type != "cpu":
        return TRANSFORMERS
    _leave_to_the_caller(own)
    settings = effective(own, search_config(own, config, options))
    return TRANSFORMERS if why_not(settings, config) else OWN_BACKEND


def _leave_to_the_caller(own: GenerationConfig) -> None:
    """Forget the language and task that a checkpoint would have where the caller names none.

    `generate` takes what is None from here: one checkpoint would then be decoded as another is not.
    """
    for name in ("language", "task", "forced_decoder_ids"):
        setattr(own, name, None)


def effective(own: GenerationConfig, search: GenerationConfig) -> dict[str, Any]:
    """Return the settings that `generate` goes by: the search's, else the checkpoint's own."""
    asked = {key: value for key, value in search.to_dict().items() if value is not None}
    return dict(own.to_dict()) | asked


def search_config(
    own: GenerationConfig, model: WhisperConfig, options: DecodingOptions
) -> GenerationConfig:
    """Return the checkpoint's own settings, with a deterministic search of the asked width."""
    config = GenerationConfig.from_dict(own.to_dict())
    config.update(
        num_beams=options.num_beams,
        num_return_sequences=1,
        do_sample=False,
        # These only have a meaning for sampling, and transformers warns of them otherwise.
        temperature=None,
        top_k=None,
        top_p=None,
        # Language and task are said by the caller; the old way of saying them is ignored.
        forced_decoder_ids=None,
        language=None,
        task=None,
        # Falling back to sampling would make transcripts random.
        compression_ratio_threshold=None,
        logprob_threshold=None,
        no_speech_threshold=None,
        return_dict_in_generate=False,
        output_scores=False,
        output_attentions=False,
        output_hidden_states=False,
    )
    if config.max_length is None and config.max_new_tokens is None:
        config.max_length = model.max_target_positions
    if config.pad_token_id is None:
        config.pad_token_id = model.pad_token_id or config.eos_token_id
    return config


def complete_tokens(
    config: GenerationConfig, vocabulary: dict[str, int], facts: CheckpointFacts
) -> None:
    """Add the token ids that fine-tuned checkpoints with an old generation config lack."""
    has = vocabulary.get
    if facts.multilingual and not getattr(config, "lang_to_id", None):
        tokens = [f"<|{code}|>" for code in LANGUAGES]
        config.lang_to_id = {token: has(token) for token in tokens if token in vocabulary}
    if facts.multilingual and not getattr(config, "task_to_id", None):
        tasks = ("transcribe", "translate")
        config.task_to_id = {task: has(f"<|{task}|>") for task in tasks}
    if facts.knows_timestamps and getattr(config, "no_timestamps_token_id", None) is None:
        config.no_timestamps_token_id = has("<|notimestamps|>")
    config.is_multilingual = facts.multilingual


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' advice and progress bars off the worker's stderr."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
