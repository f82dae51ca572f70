"""The families of models that are decoded, and which of them a checkpoint is of.

A backend other than the default decodes Whisper alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from app.contract.errors import InvalidCheckpointError
from app.contract.evaluation import DecodingOptions, Dtype
from app.contract.formats import Backend
from app.sources.architectures.architecture import CONFIG, Task
from app.sources.architectures.registry import architecture_of, undecodable
from app.sources.architectures.whisper.family import Whisper
from worker.evaluation import ctc, seq2seq
from worker.evaluation.ctc import CtcDecoder
from worker.evaluation.decoder import Decoder, Facts
from worker.evaluation.json_files import read_json
from worker.evaluation.seq2seq import Seq2SeqDecoder
from worker.evaluation.whisper import checkpoint as whisper
from worker.evaluation.whisper import ctranslate2
from worker.evaluation.whisper.ctranslate2 import CTranslate2Decoder
from worker.evaluation.whisper.decoding import SpeechDecoder


class _Family(NamedTuple):
    read_facts: Callable[[Path], Facts]
    load: Callable[[Path, str, Dtype, DecodingOptions], Decoder]


_WHISPER = _Family(whisper.read_facts, SpeechDecoder)
_BY_TASK: Mapping[Task, _Family] = {
    "ctc": _Family(ctc.read_facts, CtcDecoder),
    "seq2seq": _Family(seq2seq.read_facts, Seq2SeqDecoder),
}


def read_facts(checkpoint: Path, backend: Backend = "default") -> Facts:
    """Return the facts of a model folder, for a backend.

    Raises InvalidCheckpointError with file and field for unreadable JSON and invalid values, for a
    folder without a tokenizer, and for a model that has no decoder; ConversionFailedError if this
    worker does not have the backend.
    """
    family = _family_of(checkpoint)
    if backend == "default":
        return family.read_facts(checkpoint)
    _check_whisper(family, checkpoint, backend)
    return ctranslate2.read_facts(checkpoint, backend)


def load(checkpoint: Path, device: str, dtype: Dtype, options: DecodingOptions) -> Decoder:
    """Return a model folder's decoder; raises like `read_facts`."""
    family = _family_of(checkpoint)
    if options.backend == "default":
        return family.load(checkpoint, device, dtype, options)
    _check_whisper(family, checkpoint, options.backend)
    return CTranslate2Decoder(checkpoint, device, dtype, options)


def _check_whisper(family: _Family, checkpoint: Path, backend: Backend) -> None:
    if family is not _WHISPER:
        raise InvalidCheckpointError(f"{checkpoint.name}: only Whisper is decoded with {backend}.")


def _family_of(checkpoint: Path) -> _Family:
    config = read_json(checkpoint, CONFIG)
    architecture = architecture_of(config)
    if isinstance(architecture, Whisper):
        return _WHISPER
    if architecture.task is None:
        reason = undecodable(architecture.summary(config))
        raise InvalidCheckpointError(f"{checkpoint.name}: {reason}")
    return _BY_TASK[architecture.task]
