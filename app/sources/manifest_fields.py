"""Checks the fields of a manifest's entries, and collects utterances and faults."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from app.contract.errors import Problem
from app.contract.evaluation import Utterance
from app.contract.languages import language_code
from app.sources.audio_sources import AudioSource

MAX_PROBLEMS = 10
"""How many faults are reported; the others are counted."""
_MOST_SHOWN = 500
# A transcript of two hours has some 120,000 characters.
_MAX_LINE_BYTES = 1_000_000
MAX_TEXT, MAX_PATH, MAX_LABEL = 200_000, 4_096, 1_000
_MAX_CHANNEL = 63
_CHANNEL = re.compile(r"[0-9]{1,2}")


class EntryError(ValueError):
    """What is wrong with one entry, without its place."""


@dataclass
class Reading:
    """The utterances and faults of a manifest so far.

    `members` are the audio sources that are no files of their own, by the utterance's `audio`.
    """

    utterances: list[Utterance] = field(default_factory=list)
    members: dict[str, AudioSource] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    faults: int = 0

    @contextmanager
    def at(self, file: str, line: int) -> Iterator[None]:
        """Record an EntryError as a fault of this line, and go on."""
        with self.within(f"{file}, line {line}"):
            yield

    @contextmanager
    def within(self, place: str) -> Iterator[None]:
        """Record an EntryError as a fault of this place, and go on."""
        try:
            yield
        except EntryError as error:
            self.faults += 1
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(Problem(f"{place}: {str(error)[:_MOST_SHOWN]}"))


def lines_of(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, line) for each line that is not blank; a byte order mark is dropped."""
    body = io.BytesIO(content.removeprefix(b"\xef\xbb\xbf"))
    for number, line in enumerate(body, start=1):
        if line.strip():
            yield number, line.removesuffix(b"\n")


def decoded(line: bytes) -> str:
    """Return the line as text; EntryError if it is not UTF-8, or too long."""
    if len(line) > _MAX_LINE_BYTES:
        raise EntryError(f"{len(line):,} bytes; a line may have {_MAX_LINE_BYTES:,}")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise EntryError(f"not UTF-8 (byte {error.start + 1} of the line)") from None


def text_of(entry: Mapping[str, Any], name: str) -> str | None:
    """Return a field that is a string, or None without it."""
    value = entry.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise EntryError(f"{name} must be a string, not {kind(value)}")
    return storable(value, name)


def storable(text: str, name: str, most: int = MAX_TEXT) -> str:
    """Return the text; EntryError if a database or file system would refuse it later."""
    if len(text) > most:
        raise EntryError(f"{name} has {len(text):,} characters; at most {most:,} are taken")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EntryError(f"{name} holds half of a surrogate pair") from None
    if "\0" in text:
        raise EntryError(f"{name} holds a NUL")
    return text


def path_of(entry: Mapping[str, Any], name: str) -> str | None:
    """Return a field that is a path, or None without it; EntryError for what no path can be."""
    value = text_of(entry, name)
    return value if value is None else storable(value, name, MAX_PATH)


def seconds_of(entry: Mapping[str, Any], name: str) -> float | None:
    """Return a field that is a number of seconds from 0 up, or None without it."""
    value = entry.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EntryError(f"{name} must be a number of seconds, not {kind(value)}")
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise EntryError(f"{name} must be a number of seconds from 0 up")
    return seconds


def channel_of(entry: Mapping[str, Any]) -> int | None:
    """Return a field `channel` that is a number from 0 up (in CSV a cell of digits), or None."""
    value = entry.get("channel")
    if value is None:
        return None
    if isinstance(value, str) and _CHANNEL.fullmatch(value):
        value = int(value)
    if type(value) is not int or not 0 <= value <= _MAX_CHANNEL:
        raise EntryError(f"channel must be a number from 0 to {_MAX_CHANNEL} (0 is left, 1 right)")
    return value


def language_of(
    entry: Mapping[str, Any], names: Iterable[str] = ("language", "lang")
) -> str | None:
    """Return the language's code from the first of the names that has one, without its region."""
    value = next(filter(None, (text_of(entry, name) for name in names)), None)
    try:
        return str(language_code(value)) if value else None
    except ValueError as error:
        raise EntryError(f"language: {error}") from None


def label_of(entry: Mapping[str, Any], name: str) -> str | None:
    """Return a speaker or a session, which may be a number, as text."""
    value = entry.get(name)
    label = str(value) if isinstance(value, int) else text_of(entry, name)
    return storable(label, name, MAX_LABEL) if label else None


def kind(value: object) -> str:
    """Return what a value is called in a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "null" if value is None else "a number")
