"""Finds the columns of tables by the names that people use, and reads an utterance from a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.contract.evaluation import Utterance
from app.sources.dataset_queries import DatasetQuery
from app.sources.manifest_fields import (
    EntryError,
    channel_of,
    label_of,
    language_of,
    path_of,
    text_of,
)

AUDIO_COLUMNS = (
    "audio",
    "file_name",
    "audio_filepath",
    "path",
    "wav_filename",
    "audio_path",
    "audio_file",
    "wav_path",
    "filename",
    "file",
    "wav",
)
TEXT_COLUMNS = (
    "transcription",
    "text",
    "sentence",
    "normalized_text",
    "transcript",
    "raw_text",
    "raw_transcription",
    "reference",
)
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "spk_id")
LANGUAGE_COLUMNS = ("language", "lang", "locale")


@dataclass(frozen=True)
class Columns:
    """The names of the columns that are read; several of speakers and languages, in order."""

    audio: str
    text: str
    speaker: tuple[str, ...] = SPEAKER_COLUMNS
    language: tuple[str, ...] = LANGUAGE_COLUMNS

    @classmethod
    def of(cls, names: Iterable[str], query: DatasetQuery) -> Columns:
        """Return the columns of a table: those asked for, else the first that it has.

        EntryError for one that is missing, or there twice.
        """
        known = list(names)
        audio = _column("audio", query.audio, AUDIO_COLUMNS, known)
        text = _column("text", query.text, TEXT_COLUMNS, known)
        speaker = _optional("speaker", query.speaker, SPEAKER_COLUMNS, known)
        language = _optional("language", query.language, LANGUAGE_COLUMNS, known)
        for name in {audio, text}:
            if known.count(name) > 1:
                raise EntryError(f"the header has {name} twice")
        return cls(audio, text, speaker, language)

    @property
    def texts(self) -> tuple[str, ...]:
        """Every column that is read but the audio."""
        return (self.text, *self.speaker, *self.language, "session", "channel")

    def utterance(self, row: Mapping[str, Any], index: int, audio: str | None = None) -> Utterance:
        """Return the utterance in a row; EntryError if it lacks something.

        `audio` is given where the column itself holds no path.
        """
        place, reference = audio or path_of(row, self.audio), text_of(row, self.text)
        missing = [n for n, v in ((self.audio, place), (self.text, reference)) if v is None]
        if place is None or reference is None:
            raise EntryError(f"{' and '.join(missing)} missing; each line needs both")
        if not place:
            raise EntryError(f"{self.audio} is empty")
        try:
            language = language_of(row, self.language)
        except EntryError as error:
            raise EntryError(f"{error}; ?language= names another column, or none") from None
        # Each file is one whole utterance: a column `duration` may be of any unit and is not read.
        return Utterance(
            index=index,
            audio=place,
            reference=reference,
            channel=channel_of(row),
            language=language,
            speaker=next(filter(None, (label_of(row, name) for name in self.speaker)), None),
            session=label_of(row, "session"),
        )


def _column(what: str, asked: str | None, candidates: tuple[str, ...], known: list[str]) -> str:
    if asked is not None:
        candidates = (asked,)
    found = next((name for name in candidates if name in known), None)
    if found is None:
        shown = ", ".join(known)[:200]
        if asked is not None:
            raise EntryError(f"there is no column {asked[:100]} (?{what}=); there is {shown}")
        raise EntryError(
            f"no column of the {what}; one of {', '.join(candidates)} must hold it, or the URI "
            f"names it (?{what}=...); there is {shown}"
        )
    return found


def _optional(
    what: str, asked: str | None, candidates: tuple[str, ...], known: list[str]
) -> tuple[str, ...]:
    if asked is None:
        return tuple(name for name in candidates if name in known)
    return (_column(what, asked, candidates, known),) if asked else ()
