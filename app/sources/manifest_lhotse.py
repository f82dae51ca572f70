"""Reads utterances from Lhotse's cuts: each supervision of a cut is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.contract.evaluation import Utterance
from app.sources.manifest_fields import (
    EntryError,
    channel_of,
    kind,
    label_of,
    language_of,
    path_of,
    seconds_of,
    text_of,
)

_KEYS = frozenset({"supervisions", "recording", "recording_id", "tracks"})
_SAVE = "write it with CutSet.save_audios(folder), then to_file(cuts.jsonl)"


def is_lhotse(entry: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is of Lhotse: a cut, or part of one."""
    return "audio_filepath" not in entry and (
        not _KEYS.isdisjoint(entry) or {"sources", "sampling_rate"} <= entry.keys()
    )


def utterances_of_cut(
    cut: Mapping[str, Any], index: int, audio: str | None = None
) -> list[Utterance]:
    """Return the utterances of a cut, the first of them with this index.

    `audio` is given for a cut whose recording is stored beside it (Shar). EntryError if the cut has
    no recording in a file of its own, or no text.
    """
    if "tracks" not in cut and ("sources" in cut or "supervisions" not in cut):
        raise EntryError(
            "this is Lhotse's recording or supervision, cuts are needed: "
            "lhotse cut simple -r recordings.jsonl -s supervisions.jsonl cuts.jsonl"
        )
    if "recording" not in cut or "tracks" in cut:
        raise EntryError(f"a cut of kind {cut.get('type')} has no recording of its own; {_SAVE}")
    recording = _object(cut, "recording")
    channel: int | None = None
    if audio is None:
        audio, channel = _file(recording, cut.get("channel"))
    start, length = seconds_of(cut, "start") or 0.0, seconds_of(cut, "duration")
    supervisions = _list(cut, "supervisions")
    if not supervisions:
        raise EntryError("the cut has no supervision, so no text")
    return [
        _utterance(one, index + number, audio, channel, start, length, recording)
        for number, one in enumerate(supervisions)
    ]


def _utterance(
    supervision: Any,
    index: int,
    audio: str,
    channel: int | None,
    start: float,
    length: float | None,
    recording: Mapping[str, Any],
) -> Utterance:
    if not isinstance(supervision, dict):
        raise EntryError(f"a supervision is an object, not {kind(supervision)}")
    text, duration = text_of(supervision, "text"), seconds_of(supervision, "duration")
    begin = supervision.get("start", 0.0)
    if text is None or duration is None or type(begin) not in {int, float}:
        raise EntryError("a supervision needs text, start and duration")
    # It may begin before its cut, or end after it; what is outside is not in the audio.
    end = min(begin + duration, begin + duration if length is None else length)
    begin = max(begin, 0.0)
    if end <= begin:
        raise EntryError("a supervision lies outside its cut")
    return Utterance(
        index=index,
        audio=audio,
        reference=text,
        offset_seconds=round(start + begin, 6),
        duration_seconds=round(end - begin, 6),
        channel=channel,
        language=language_of(supervision),
        speaker=label_of(supervision, "speaker"),
        session=label_of(recording, "id"),
    )


def _file(recording: Mapping[str, Any], wanted: Any) -> tuple[str, int | None]:
    """Return the file that holds a cut's channel, and the channel's number in it."""
    if recording.get("transforms"):
        raise EntryError(f"the recording is transformed as it is loaded; {_SAVE}")
    sources = [one for one in _list(recording, "sources") if isinstance(one, dict)]
    chosen = wanted if isinstance(wanted, list) else [wanted]
    for source in sources:
        channels = _list(source, "channels")
        if wanted is not None and not all(one in channels for one in chosen):
            continue
        if source.get("type") != "file":
            raise EntryError(f"the recording is of kind {source.get('type')}, no file; {_SAVE}")
        path = path_of(source, "source")
        if not path:
            raise EntryError("the recording's source has no path")
        # A file of one channel, or all of its channels: they are averaged.
        if len(channels) < 2 or wanted is None or set(chosen) == set(channels):
            return path, None
        if len(chosen) > 1:
            break
        return path, channel_of({"channel": channels.index(chosen[0])})
    raise EntryError(f"no source of the recording has exactly the cut's channels; {_SAVE}")


def _object(entry: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = entry[name]
    if not isinstance(value, dict):
        raise EntryError(f"{name} must be an object, not {kind(value)}")
    return value


def _list(entry: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = entry.get(name, [])
    if not isinstance(value, list):
        raise EntryError(f"{name} must be a list, not {kind(value)}")
    return value
