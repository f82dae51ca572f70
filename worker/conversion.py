"""Writes a finished artifact in the formats of other runtimes, by their own converters.

CTranslate2 is an optional part of a worker (the extra `ctranslate2`). Its converter reads what
transformers loads from safetensors and JSON, and writes weights without pickles.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.contract.errors import ConversionFailedError, OutOfMemoryError
from app.contract.formats import CTRANSLATE2, Format, quantization_of
from app.contract.languages import WHISPER_LANGUAGES
from app.sources.architectures.architecture import CONFIG, GENERATION_CONFIG, PREPROCESSOR
from app.sources.architectures.whisper import generation
from app.storage.artifacts import is_full, storage_error
from worker.loadable import OFFLINE, quiet

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

_TOKENIZER = "tokenizer.json"


def check_converters(formats: Sequence[Format]) -> None:
    """Raise ConversionFailedError if this worker cannot write, or run, one of the formats."""
    if formats and find_spec(CTRANSLATE2) is None:
        raise ConversionFailedError(
            f"{formats[0]} needs CTranslate2, which this worker does not have; install it there "
            "with pip install 'afluente[ctranslate2]', or do without it."
        )


def write_formats(
    folder: Path, formats: Sequence[Format], check_stop: Callable[[], None] = lambda: None
) -> None:
    """Write a Whisper's folder in each format, into a folder of that name inside it.

    `check_stop` is called before each, and may raise. ConversionFailedError says what the converter
    says; StorageError if the disk is full.
    """
    check_converters(formats)
    for name in formats:
        check_stop()
        convert(folder, folder / name, name)


def convert(checkpoint: Path, target: Path, name: Format) -> None:
    """Write a Whisper's folder in one format to `target`, which must not exist.

    Equal folders give equal bytes. `target` has all that faster-whisper loads. Raises like
    `write_formats`.
    """
    try:
        with quiet():
            _convert(checkpoint, target, quantization_of(name))
    except MemoryError as error:
        raise OutOfMemoryError(f"{name}: out of memory.") from error
    except Exception as error:
        if isinstance(error, OSError) and is_full(error):
            raise storage_error(error, target) from error
        reason = f"{type(error).__name__}: {error}"
        raise ConversionFailedError(
            f"CTranslate2's converter refuses the checkpoint: {reason[:500]}; do without {name}."
        ) from error


def _convert(checkpoint: Path, target: Path, quantization: str) -> None:
    # Imported late: most merges need neither.
    from ctranslate2.converters import TransformersConverter
    from transformers import (
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    class Converter(TransformersConverter):
        """CTranslate2's, reading safetensors alone, with the rules of search that we decode by."""

        tokenizer: WhisperTokenizer

        def load_model(self, _: Any, path: str, **options: Any) -> Any:
            return WhisperForConditionalGeneration.from_pretrained(
                path, use_safetensors=True, **OFFLINE, **options
            )

        def load_tokenizer(self, _: Any, path: str, **options: Any) -> Any:
            self.tokenizer = WhisperTokenizer.from_pretrained(path, **OFFLINE, **options)
            ids = self.tokenizer.get_vocab().values()
            # The converter lists tokens in the order of their ids, without the ids.
            if gaps := set(range(len(ids))).difference(ids):
                raise ValueError(f"the tokenizer has no token {min(gaps)}")
            return self.tokenizer

        def _load(self) -> Any:
            spec = super()._load()
            for field, value in _rules(checkpoint, self.tokenizer).items():
                setattr(spec.config, field, value)
            return spec

    converter = Converter(str(checkpoint))
    converter.convert(str(target), quantization=quantization)
    features = WhisperFeatureExtractor.from_pretrained(str(checkpoint), **OFFLINE)
    features.to_json_file(target / PREPROCESSOR)
    if (checkpoint / _TOKENIZER).exists():
        shutil.copyfile(checkpoint / _TOKENIZER, target / _TOKENIZER)
    else:
        converter.tokenizer.backend_tokenizer.save(str(target / _TOKENIZER))


def _rules(checkpoint: Path, tokenizer: WhisperTokenizer) -> dict[str, list[int]]:
    """Return the tokens that are never said, that are not said first, and those of languages."""
    config = json.loads((checkpoint / CONFIG).read_bytes())
    file = checkpoint / GENERATION_CONFIG
    document = json.loads(file.read_bytes()) if file.exists() else None
    settings = generation.settings_of(document, config)
    own = generation.constraints(settings, config, num_beams=1, prompt=1)
    languages = settings.lang_to_id or {}
    if not languages and generation.is_multilingual(settings, config):
        names = {f"<|{code}|>" for code in WHISPER_LANGUAGES}
        languages = {t: n for t, n in tokenizer.get_vocab().items() if t in names}
    return {
        "suppress_ids": own.get("suppress_tokens", []),
        "suppress_ids_begin": own.get("begin_suppress_tokens", []),
        "lang_ids": sorted(languages.values()),
    }
