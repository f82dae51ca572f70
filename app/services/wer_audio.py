"""The audio of a merge's decoded utterances, for listening."""

from __future__ import annotations

import hashlib
import os
from io import FileIO
from pathlib import PurePath

from app.contract.errors import (
    ForbiddenError,
    NotFoundError,
    SourceError,
    SourceNotAllowedError,
)
from app.contract.evaluation import EvaluationSpec
from app.services.backend import Backend
from app.services.downloads import Download, OpenFile
from app.services.evaluations import find as find_evaluation
from app.services.preparation import source_policy
from app.services.selection import MERGE
from app.sources.audio_files import HEAD_BYTES, PLAYABLE, container_of
from app.sources.checkpoint import Signature
from app.sources.datasets import open_audio
from app.storage import evaluations


def utterance_audio(
    backend: Backend, merge_id: str, evaluation_id: str, dataset: str, index: int
) -> Download:
    """Return the whole audio file of an utterance that the merge has decoded.

    Raises:
        NotFoundError: no result names the utterance, its file is gone, or browsers cannot play it.
        ForbiddenError: its file is outside the folders that may be read.

    """
    uri, audio = _stored(backend, merge_id, evaluation_id, dataset, index)
    try:
        file = open_audio(uri, audio, source_policy(backend.settings, backend.engine))
    except SourceNotAllowedError as error:
        raise ForbiddenError(error.message) from None
    except SourceError as error:
        raise NotFoundError(error.message) from None
    # By its first bytes: whatever else may have taken the file's place is not sent.
    media_type = PLAYABLE.get(container_of(_head(file)) or "")
    if media_type is None:
        file.close()
        raise NotFoundError(f"{audio} is not audio that browsers play: {', '.join(PLAYABLE)}")
    signature = Signature.of(os.fstat(file.fileno()))
    version = hashlib.sha256(str(signature).encode()).hexdigest()
    if "::" in audio:  # a copy of a member, a new file each time
        version = hashlib.file_digest(file, "sha256").hexdigest()
    name = PurePath(audio.rpartition("::")[2]).name.rstrip(")")
    opened = OpenFile(name, file, signature)
    return Download(opened.name, media_type, version, [opened])


def _stored(
    backend: Backend, merge_id: str, evaluation_id: str, dataset: str, index: int
) -> tuple[str, str]:
    """Return (URI of the manifest, path in it) of a decoded utterance's audio."""
    spec = EvaluationSpec.model_validate(find_evaluation(backend, merge_id, evaluation_id)["spec"])
    uris = {one.name: one.uri for one in spec.datasets}
    row = evaluations.result(backend.engine, evaluation_id, MERGE, dataset)
    if row is None or dataset not in uris:
        raise NotFoundError(f'{evaluation_id} has no result of the merge on "{dataset}".')
    for utterance in row["utterances"]:
        if utterance["index"] == index:
            return uris[dataset], utterance["audio"]
    raise NotFoundError(f'The merge\'s result on "{dataset}" has no utterance {index}.')


def _head(file: FileIO) -> bytes:
    return os.pread(file.fileno(), HEAD_BYTES, 0)
