"""Parses a Kaldi data folder: wav.scp, text, and segments and utt2spk where there are any."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from app.contract.evaluation import Utterance
from app.sources.manifest_fields import (
    MAX_LABEL,
    MAX_PATH,
    MAX_TEXT,
    EntryError,
    Reading,
    channel_of,
    decoded,
    lines_of,
    storable,
)

NEEDED = ("wav.scp", "text")
OPTIONAL = ("segments", "utt2spk")
FILES = (*NEEDED, *OPTIONAL)
_ARCHIVE = re.compile(r"\.ark(:\d+)?$")
# What extract-segments of Kaldi takes as "until the recording ends".
_TO_THE_END = -1.0


@dataclass(frozen=True)
class _Line:
    number: int
    rest: str


@dataclass(frozen=True)
class _Stretch:
    """The part of a recording that is an utterance."""

    recording: str
    offset_seconds: float | None = None
    duration_seconds: float | None = None
    channel: int | None = None


def parse_kaldi(files: Mapping[str, bytes], reading: Reading) -> None:
    """Read the files of a folder, by name: those of NEEDED, and those of OPTIONAL that there are.

    Without segments each recording is an utterance. With them a recording is a session, which has
    one microphone.
    """
    recordings = _table("wav.scp", files, reading)
    for line in recordings.values():
        with reading.at("wav.scp", line.number):
            _check_recording(line.rest)
    texts, speakers = (_table(name, files, reading) for name in ("text", "utt2spk"))
    places = "segments" if "segments" in files else "wav.scp"
    lines = _table("segments", files, reading) if "segments" in files else recordings
    if reading.problems:
        return  # later faults would only follow from these
    for name, line in lines.items():
        with reading.at(places, line.number):
            stretch = _segment(line.rest) if places == "segments" else _Stretch(name)
            if stretch.recording not in recordings:
                raise EntryError(f'wav.scp has no recording "{stretch.recording}"')
            if name not in texts:
                raise EntryError(f'text has no line for "{name}"')
            speaker = speakers[name].rest if name in speakers else None
            utterance = Utterance(
                index=len(reading.utterances),
                audio=storable(recordings[stretch.recording].rest, "the path", MAX_PATH),
                reference=texts[name].rest,
                offset_seconds=stretch.offset_seconds,
                duration_seconds=stretch.duration_seconds,
                channel=stretch.channel,
                # Kaldi calls an unknown speaker by the utterance's own name.
                speaker=speaker if speaker != name else None,
                session=stretch.recording if places == "segments" else None,
            )
            reading.utterances.append(utterance)
    for name, line in texts.items():
        with reading.at("text", line.number):
            if name not in lines:
                raise EntryError(f'{places} has no line for "{name}": what was said has no audio')


def _table(file: str, files: Mapping[str, bytes], reading: Reading) -> dict[str, _Line]:
    """Return the rest of each line by the identifier that it begins with."""
    lines: dict[str, _Line] = {}
    for number, content in lines_of(files.get(file, b"")):
        with reading.at(file, number):
            name, *rest = re.split(r"[ \t]+", decoded(content).strip(" \t\r\n"), maxsplit=1)
            if name in lines:
                raise EntryError(f'"{name}" is there twice (before in line {lines[name].number})')
            most = MAX_LABEL if file == "utt2spk" else MAX_TEXT
            text = storable(rest[0] if rest else "", "the line", most)
            lines[storable(name, "the identifier", MAX_LABEL)] = _Line(number, text)
    return lines


def _check_recording(place: str) -> None:
    if not place:
        raise EntryError("the recording has no file")
    if place.endswith("|") or place.startswith("|"):
        raise EntryError("a command is never run; write its output to a file, and name that")
    if place == "-" or _ARCHIVE.search(place):
        raise EntryError("only audio files are read, no archive and no standard input")


def _segment(rest: str) -> _Stretch:
    parts = rest.split()
    if len(parts) not in {3, 4}:
        raise EntryError(
            "a segment is an utterance, a recording, a start and an end in seconds, and a channel "
            "where one is chosen"
        )
    start, end = (_number(part) for part in parts[1:3])
    channel = channel_of({"channel": parts[3]}) if len(parts) == 4 else None
    if start < 0 or (end <= start and end != _TO_THE_END):
        raise EntryError("a segment starts at 0 or later, and ends after its start (or at -1)")
    return _Stretch(parts[0], start, None if end == _TO_THE_END else end - start, channel)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise EntryError(f'"{text[:40]}" is not a number of seconds')
    return value
