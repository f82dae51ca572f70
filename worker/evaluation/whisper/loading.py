"""Loads a Whisper for decoding: offline, from safetensors, without guessing missing parts.

Libraries read only weights from files; other settings come from WhisperFacts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.activations import ACT2FN

from app.contract.errors import InvalidCheckpointError
from app.contract.evaluation import DecodingOptions
from app.sources.architectures.whisper.shapes import SIZE_KEYS, is_output_tied
from worker.evaluation.models import LoadedModel
from worker.evaluation.whisper.checkpoint import WhisperFacts
from worker.loadable import blaming


def load(checkpoint: Path, facts: WhisperFacts, device: str, dtype: torch.dtype) -> LoadedModel:
    """Return the folder's model; any error of the libraries becomes an InvalidCheckpointError."""
    with blaming(f"{checkpoint.name}: config.json cannot be used"):
        config = model_config(checkpoint.name, facts)
    return LoadedModel(
        WhisperForConditionalGeneration,
        checkpoint,
        config,
        device,
        dtype,
        generation_config=GenerationConfig(),
    )


def model_config(name: str, facts: WhisperFacts) -> WhisperConfig:
    """Return a model config with only the fields that affect the computation."""
    config = facts.config
    activation = config.get("activation_function", "gelu")
    if not isinstance(activation, str) or activation not in ACT2FN:
        raise InvalidCheckpointError(
            f"{name}: config.json has an unknown activation_function {ascii(activation)[:60]}."
        )
    return WhisperConfig(
        **{size: config[size] for size in SIZE_KEYS},
        activation_function=activation,
        scale_embedding=config.get("scale_embedding", False) is True,
        tie_word_embeddings=is_output_tied(config),
        decoder_start_token_id=facts.start,
        eos_token_id=facts.ends[0],
        pad_token_id=facts.ends[0],
        bos_token_id=facts.ends[0],
    )


def generation_config(facts: WhisperFacts, options: DecodingOptions) -> GenerationConfig:
    """Return a deterministic search with the requested width and the checkpoint's constraints.

    Language and task are not included; they are arguments of every call.
    """
    own = facts.constraints(options.num_beams, timestamps=True)
    end = facts.ends[0]
    settings = {
        "num_beams": options.num_beams,
        "num_return_sequences": 1,
        "do_sample": False,
        "decoder_start_token_id": facts.start,
        "eos_token_id": end,
        "pad_token_id": end,
        "bos_token_id": end,
        # For Whisper, this is the number of new tokens, up to the model's positions.
        "max_length": own.pop("max_new_tokens", facts.config["max_target_positions"]),
        "is_multilingual": facts.multilingual,
    }
    if facts.no_timestamps is not None:
        settings["no_timestamps_token_id"] = facts.no_timestamps
    if facts.multilingual:
        settings["lang_to_id"] = {f"<|{code}|>": token for code, token in facts.languages.items()}
        settings["task_to_id"] = dict(facts.tasks)
    return GenerationConfig(**settings | own)
