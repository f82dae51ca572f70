"""Finds audio in tars: NeMo's tarred sets, WebDataset's samples, Lhotse's Shar."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from app.contract.evaluation import Utterance
from app.sources.archives import members_of
from app.sources.audio_sources import AudioSource, TarMember
from app.sources.manifest_columns import TEXT_COLUMNS, Columns
from app.sources.manifest_fields import EntryError, Reading, decoded, lines_of, storable
from app.sources.manifest_lhotse import utterances_of_cut
from app.sources.manifest_place import Place, expand

AUDIO_SUFFIXES = frozenset(
    {
        "wav", "flac", "ogg", "opus", "mp3", "m4a", "mp4", "aac", "webm", "mka", "mkv", "mov",
        "wma", "amr", "w64", "aiff", "aif", "au", "caf", "sph",
    }
)  # fmt: skip
# NeMo gives the second utterance of a file the name of the file with -sub1, and so on.
_SUB = re.compile(r"-sub\d+(?=(\.\w+)?$)")
_NUMBER = re.compile(r"(\d+)\.tar$")
_MOST_TEXT_BYTES = 1_000_000


class Tarred:
    """The tars of a NeMo set, each listed once."""

    def __init__(self, place: Place, pattern: str) -> None:
        self._place = place
        self._tars = {int(_number(name)): name for name in expand(pattern)}
        self._members: dict[str, dict[str, TarMember]] = {}

    @classmethod
    def of(cls, place: Place) -> Tarred | None:
        """Return the tars that the query names, or those beside the manifest; None without any."""
        if place.query.tar:
            return cls(place, place.query.tar)
        if place.has("audio_0.tar"):
            numbers = [
                int(found[1])
                for name in place.names()
                if name.startswith("audio_") and (found := _NUMBER.search(name))
            ]
            return cls(place, f"audio_{{0..{max(numbers)}}}.tar")
        return None

    def find(self, utterance: Utterance, shard: Any, reading: Reading) -> Utterance:
        """Return the utterance with the name of its member; EntryError if no tar has it."""
        tars = [self._tars[shard]] if type(shard) is int and shard in self._tars else []
        if shard is not None and not tars:
            raise EntryError(f"there is no tar of shard_id {str(shard)[:20]}; name them with ?tar=")
        plain = utterance.audio.removeprefix("./")
        for tar in tars or self._tars.values():
            if tar not in self._members:
                with self._place.open(tar) as handle:
                    self._members[tar] = dict(members_of(handle, self._place.place_of(tar)))
            members = self._members[tar]
            for name in (plain, _SUB.sub("", plain)):
                if name in members:
                    audio = add_member(self._place, tar, name, members[name], reading)
                    return utterance.model_copy(update={"audio": audio})
        raise EntryError(f"{plain[:200]} is not in {tars[0] if tars else 'any of the tars'}")


def add_member(place: Place, tar: str, name: str, member: TarMember, reading: Reading) -> str:
    """Record a member of a tar as an audio source, and return its name."""
    audio = f"{tar}::{name}"
    reading.members[audio] = AudioSource(place.folder / tar, member)
    return audio


def read_webdataset(place: Place) -> None:
    """Read tars of samples: files of one name up to the first dot, audio and text."""
    tars = expand(place.file) if place.file else [n for n in place.names() if n.endswith(".tar")]
    for tar in tars:
        with place.open(tar) as handle:
            samples: dict[str, dict[str, tuple[str, TarMember]]] = {}
            for name, member in members_of(handle, place.place_of(tar)):
                path = PurePosixPath(name)
                stem, _, suffix = path.name.partition(".")
                samples.setdefault(str(path.with_name(stem or "_")), {})[suffix.lower()] = (
                    name,
                    member,
                )
            for key, files in samples.items():
                with place.reading.within(f"{tar}, {key[:200]}"):
                    _add_sample(place, tar, key, files, handle)
        if _is_full(place):
            return


def _add_sample(
    place: Place, tar: str, key: str, files: Mapping[str, tuple[str, TarMember]], handle: Any
) -> None:
    audio = next((files[s] for s in files if s.rpartition(".")[2] in AUDIO_SUFFIXES), None)
    if audio is None:
        raise EntryError(f"there is no audio among its files: {', '.join(files)[:200]}")

    def content(suffix: str) -> bytes:
        member = files[suffix][1]
        if member.size > _MOST_TEXT_BYTES:
            raise EntryError(f"its .{suffix} has {member.size:,} bytes")
        return member.read(handle)

    row: dict[str, Any] = {}
    if "json" in files:
        try:
            row = json.loads(content("json"))
        except (ValueError, RecursionError):
            raise EntryError("its .json is not JSON") from None
        if not isinstance(row, dict):
            raise EntryError("its .json is no object")
    suffix = next((s for s in (place.query.text, "txt", *TEXT_COLUMNS) if s and s in files), None)
    if suffix is not None:
        row["text"] = decoded(content(suffix)).strip()
    columns = Columns.of([*row, "audio"], place.query)
    name = add_member(place, tar, storable(audio[0], "the name"), audio[1], place.reading)
    place.reading.utterances.append(columns.utterance(row, len(place.reading.utterances), name))


def read_shar(place: Place) -> None:
    """Read Lhotse's Shar: cuts, and tars with a recording of each cut."""
    for cuts in (name for name in place.names() if name.startswith("cuts.")):
        tar = f"recording{cuts.removeprefix('cuts').partition('.jsonl')[0]}.tar"
        with place.open(tar) as handle:
            members = {
                name.rpartition(".")[0]: (name, member)
                for name, member in members_of(handle, place.place_of(tar))
                if name.rpartition(".")[2] in AUDIO_SUFFIXES
            }
        for number, line in lines_of(place.read(cuts)):
            with place.reading.at(cuts, number):
                try:
                    cut = json.loads(decoded(line))
                    found = members.get(cut["id"])
                except (ValueError, RecursionError, KeyError, TypeError):
                    raise EntryError("this is no cut of Lhotse") from None
                if found is None:
                    raise EntryError(f'{tar} has no audio of "{cut["id"]}"')
                audio = add_member(place, tar, *found, place.reading)
                count = len(place.reading.utterances)
                place.reading.utterances += utterances_of_cut(cut, count, audio)
        if _is_full(place):
            return


def _is_full(place: Place) -> bool:
    limit = place.query.limit
    return limit is not None and len(place.reading.utterances) >= limit


def _number(name: str) -> str:
    found = _NUMBER.search(name)
    return found[1] if found else "0"
