"""Writes scored utterances as JSON lines, or in the formats of other tools.

An entry is an utterance of `GET /merges/{id}/wer/utterances`. Formats for scoring (trn, STM,
SegLST) have one side's text as it was scored; NeMo's manifest has both, as they were written and
decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

Entries = Sequence[Mapping[str, Any]]
Side = Literal["reference", "hypothesis"]
ExportFormat = Literal["jsonl", "trn", "stm", "seglst", "nemo"]

# Comments, alternatives, optional words and labels of NIST's formats.
_SYNTAX = str.maketrans("(){};<>", "       ")


@dataclass(frozen=True)
class Export:
    """A format: its media type, and what writes it."""

    media_type: str
    write: Callable[[Entries, Side], str]


def _jsonl(entries: Entries, side: Side) -> str:
    return _json_lines(entries)


def _trn(entries: Entries, side: Side) -> str:
    """Return NIST's trn: `words (speaker-number)`."""
    lines = []
    for entry in entries:
        speaker = "".join(c if c.isalnum() else "_" for c in _speaker(entry))
        number = f"{entry['dataset']}_{entry['index']:06d}"
        lines.append(f"{_words(entry, side)} ({speaker}-{number})\n")
    return "".join(lines)


def _stm(entries: Entries, side: Side) -> str:
    """Return NIST's STM: recording, channel (from 1), speaker, start, end, words; in seconds."""
    lines = []
    for entry in entries:
        start, end = _times(entry)
        channel = (entry["channel"] or 0) + 1
        speaker = _one_word(_speaker(entry))
        head = f"{_recording(entry)} {channel} {speaker} {start:.3f} {end:.3f}"
        lines.append(f"{head} {_words(entry, side)}".rstrip() + "\n")
    return "".join(lines)


def _seglst(entries: Entries, side: Side) -> str:
    """Return SegLST, the format of meeteval and of CHiME-7 and 8: a list of segments."""
    segments = []
    for entry in entries:
        start, end = _times(entry)
        segments.append(
            {
                "session_id": _recording(entry),
                "start_time": start,
                "end_time": end,
                "words": entry["normalized"][side],
                "speaker": _speaker(entry),
            }
        )
    return json.dumps(segments, ensure_ascii=False, indent=1) + "\n"


def _nemo(entries: Entries, side: Side) -> str:
    """Return a NeMo manifest with `pred_text`, for its explorer and its tools that score."""
    return _json_lines(dict(_nemo_line(entry)) for entry in entries)


def _nemo_line(entry: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "audio_filepath", entry["audio"]
    yield "duration", entry["audio_seconds"]
    optional = {"offset": "offset_seconds", "channel": "channel", "lang": "language"}
    for name, field in {**optional, "speaker": "speaker", "session": "session"}.items():
        if entry[field] is not None:
            yield name, entry[field]
    yield "text", entry["reference"]
    yield "pred_text", entry["hypothesis"]


EXPORTS: Mapping[ExportFormat, Export] = {
    "jsonl": Export("application/jsonl", _jsonl),
    "trn": Export("text/plain", _trn),
    "stm": Export("text/plain", _stm),
    "seglst": Export("application/json", _seglst),
    "nemo": Export("application/jsonl", _nemo),
}


def _json_lines(entries: Any) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _words(entry: Mapping[str, Any], side: Side) -> str:
    return " ".join(str(entry["normalized"][side]).translate(_SYNTAX).split())


def _speaker(entry: Mapping[str, Any]) -> str:
    return str(entry["speaker"] or entry["dataset"])


def _recording(entry: Mapping[str, Any]) -> str:
    """Return the audio's path without suffix, as one word; a session may be of several files."""
    audio = entry["audio"]
    return _one_word(audio if "::" in audio else str(PurePosixPath(audio).with_suffix("")))


def _one_word(text: str) -> str:
    # An empty column would move the others to the left.
    return "_".join(text.translate(_SYNTAX).split()) or "_"


def _times(entry: Mapping[str, Any]) -> tuple[float, float]:
    start = float(entry["offset_seconds"] or 0.0)
    return round(start, 6), round(start + float(entry["audio_seconds"]), 6)
