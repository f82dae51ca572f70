"""Reads sets whose layout is their form: Common Voice, LibriSpeech, and STM beside its audio."""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath

from app.contract.evaluation import Utterance
from app.sources.manifest_fields import (
    MAX_LABEL,
    MAX_TEXT,
    EntryError,
    decoded,
    lines_of,
    storable,
)
from app.sources.manifest_place import Place, once
from app.sources.manifest_tables import parse_csv

TRANSCRIPTS = (".trans.txt", ".trans.txt.gz")
STM = (".stm", ".stm.gz")
_FOUND_BESIDE = ("wav", "sph", "flac", "mp3", "ogg", "opus", "m4a")
_LABELS = re.compile(r"<[^<>]*>$")


def read_table(place: Place) -> None:
    """Read CSV or TSV; Common Voice keeps the files that its tables name in `clips`."""
    clips = place.has("clips") and PurePosixPath(place.file.removesuffix(".gz")).suffix == ".tsv"

    def located(audio: str) -> str:
        return f"clips/{audio}" if clips and "/" not in audio else audio

    content = place.read(place.file)
    parse_csv(place.file, content, place.reading, place.query, located)


def read_librispeech(place: Place) -> None:
    """Read `*.trans.txt`: the utterance's name, which is its file's, and the text."""
    for file in once(place.walk(TRANSCRIPTS)):
        folder = str(PurePosixPath(file).parent)
        audio = set(place.names("" if folder == "." else folder))
        for number, line in lines_of(place.read(file)):
            with place.reading.at(file, number):
                name, _, text = decoded(line).strip().partition(" ")
                found = next(
                    (f"{name}.{s}" for s in ("flac", "wav") if f"{name}.{s}" in audio), None
                )
                if found is None:
                    raise EntryError(f"there is no {name[:200]}.flac beside it")
                parts = name.split("-")
                place.reading.utterances.append(
                    Utterance(
                        index=len(place.reading.utterances),
                        audio=found if folder == "." else f"{folder}/{found}",
                        reference=storable(text.strip(), "the text", MAX_TEXT),
                        speaker=parts[0] if len(parts) == 3 else None,
                        session="-".join(parts[:2]) if len(parts) == 3 else None,
                    )
                )


def read_stm(place: Place) -> None:
    """Read STM: recording, channel, speaker, start, end, <labels>, text."""
    files = [place.file] if place.file else once(n for n in place.names() if n.endswith(STM))
    for file in files:
        for number, line in lines_of(place.read(file)):
            with place.reading.at(file, number):
                text = decoded(line).strip()
                if not text.startswith(";;"):
                    _add_stm_line(place, text)
    # The first channel is that of a mono file, unless the recording has a second one.
    utterances = place.reading.utterances
    stereo = {one.session for one in utterances if one.channel == 1}
    for index, one in enumerate(utterances):
        if one.session in stereo and one.channel is None:
            utterances[index] = one.model_copy(update={"channel": 0})


def _add_stm_line(place: Place, line: str) -> None:
    parts = line.split(maxsplit=5)
    try:
        recording, channel, speaker, first, last = parts[:5]
        start, end = float(first), float(last)
    except ValueError:
        start, end = math.nan, math.nan
    if not 0 <= start < end < math.inf:
        raise EntryError("a line is recording, channel, speaker, start and end in seconds, text")
    rest = parts[5] if len(parts) > 5 else ""
    label, _, after = rest.partition(" ")
    text = after.strip() if _LABELS.fullmatch(label) else rest
    # sclite leaves these out, too: nothing was transcribed there.
    if text.lower() == "ignore_time_segment_in_scoring":
        return
    place.reading.utterances.append(
        Utterance(
            index=len(place.reading.utterances),
            audio=_beside(place, recording),
            reference=storable(text, "the text", MAX_TEXT),
            offset_seconds=start,
            duration_seconds=end - start,
            channel=_stm_channel(channel),
            speaker=storable(f"{recording}-{speaker}", "the speaker", MAX_LABEL),
            session=storable(recording, "the recording", MAX_LABEL),
        )
    )


def _stm_channel(text: str) -> int | None:
    """Return 1 for the second channel, and None for the first, which may be the only one."""
    known = {"a": None, "1": None, "0": None, "b": 1, "2": 1}
    if text.lower() not in known:
        raise EntryError(f'the channel is 1 or 2 (or A, B), not "{text[:20]}"')
    return known[text.lower()]


def _beside(place: Place, recording: str) -> str:
    if "/" in recording or "\0" in recording:
        raise EntryError("the recording is a name without folders")
    for folder in ("", "wav/", "audio/", "sph/", "../sph/", "../wav/", "../audio/"):
        for suffix in _FOUND_BESIDE:
            if place.has(f"{folder}{recording}.{suffix}"):
                return f"{folder}{recording}.{suffix}"
        if place.has(f"{folder}{recording}") and PurePosixPath(recording).suffix:
            return f"{folder}{recording}"
    raise EntryError(f"there is no audio of {recording[:200]} beside it, in wav/, audio/ or sph/")
