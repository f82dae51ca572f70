"""Loads untrusted files with transformers: offline, quietly, with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from app.contract.errors import AfluenteError, InvalidCheckpointError, OutOfMemoryError
from app.sources.architectures.architecture import CONFIG
from app.sources.architectures.registry import architecture_of

OFFLINE = {"local_files_only": True, "trust_remote_code": False}


def check_loadable(folder: Path, label: str) -> None:
    """Have transformers load what a folder made by `LocalCheckpoint.opened` has besides weights.

    All of it for a Whisper; config.json for any other model that transformers knows. No weights
    are read and no code of the checkpoint is run. InvalidCheckpointError names `label` and the
    file that cannot be loaded.
    """
    config = json.loads((folder / CONFIG).read_bytes())
    check = {"whisper": _check_whisper}.get(architecture_of(config).name, _check_config)
    check(str(folder), label, config["model_type"])


# transformers is imported where it is used: it takes seconds, and most merges are of a reference
# that was checked before.
def _check_config(path: str, label: str, model_type: str) -> None:
    from transformers import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        with blaming(f"{label}: config.json cannot be loaded by transformers"):
            CONFIG_MAPPING[model_type].from_pretrained(path, **OFFLINE)


def _check_whisper(path: str, label: str, _: str) -> None:
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
    )

    with blaming(f"{label}: config.json cannot be loaded by transformers"):
        config = WhisperConfig.from_pretrained(path, **OFFLINE)
        with torch.device("meta"):
            WhisperForConditionalGeneration(config)
    with blaming(f"{label}: generation_config.json cannot be loaded by transformers"):
        GenerationConfig.from_pretrained(path, **OFFLINE)
    with blaming(f"{label}: preprocessor_config.json cannot be loaded by transformers"):
        WhisperFeatureExtractor.from_pretrained(path, **OFFLINE)
    with blaming(f"{label}: its tokenizer's files cannot be loaded by transformers"):
        WhisperProcessor.from_pretrained(path, **OFFLINE)


@contextmanager
def blaming(what: str) -> Iterator[None]:
    """Turn any error of a library into an InvalidCheckpointError that begins with `what`.

    Our own errors, those of memory and devices, and requests to stop pass through.
    """
    try:
        with quiet():
            yield
    except (AfluenteError, torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except MemoryError as error:
        raise OutOfMemoryError(f"{what}: out of memory.") from error
    except BaseException as error:
        # Panics of tokenizers do not derive from Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = f"{type(error).__name__}: {error}"
        raise InvalidCheckpointError(f"{what}: {reason[:500]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings and progress bars."""
    from transformers.utils import logging as transformers_logging

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
