"""Reads a dataset's manifest in any form; each fault is reported with file and line."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.contract.errors import InvalidManifestError
from app.contract.evaluation import Utterance
from app.sources import manifest_kaldi as kaldi
from app.sources.audio_sources import AudioSource
from app.sources.dataset_queries import DatasetQuery
from app.sources.dataset_splits import pick
from app.sources.local import Roots
from app.sources.manifest_fields import Reading
from app.sources.manifest_folders import STM, TRANSCRIPTS, read_librispeech, read_stm, read_table
from app.sources.manifest_hugging_face import read_arrow, read_parquet
from app.sources.manifest_place import Place, expand, once
from app.sources.manifest_tables import parse_json_lines
from app.sources.manifest_tarred import Tarred, read_shar, read_webdataset


@dataclass(frozen=True)
class Manifest:
    """A dataset's utterances in their order; audio paths are relative to `folder`.

    `members` are the sources of audio that is no file of its own, by the utterance's `audio`.
    `unread` utterances were not looked at, since it would take too long here. Audio that is
    `remote` is not on this machine.
    """

    folder: Path
    utterances: tuple[Utterance, ...]
    manifest_sha256: str
    members: Mapping[str, AudioSource] = field(default_factory=dict)
    unread: int = 0
    remote: bool = False


@dataclass(frozen=True)
class Form:
    """A form of datasets.

    Attributes:
        name: what it is called.
        given: how it is given, for the documentation.
        fields: what is read, for the documentation.
        read: reads what is at a place.
        suffixes: the names of its files end so, before `.gz`.
        in_folder: its file's names, which are looked for in a folder; may end with `.gz` too.
        is_folder: tells by the names in a folder whether the folder itself has the form.

    """

    name: str
    given: str
    fields: str
    read: Callable[[Place], None]
    suffixes: tuple[str, ...] = ()
    in_folder: tuple[str, ...] = ()
    is_folder: Callable[[Place, list[str]], bool] = lambda place, names: False


def _read_kaldi(place: Place) -> None:
    there = [name for name in kaldi.OPTIONAL if place.has(name)]
    kaldi.parse_kaldi({name: place.read(name) for name in (*kaldi.NEEDED, *there)}, place.reading)


def _read_json_lines(place: Place) -> None:
    tarred = Tarred.of(place)
    for name in expand(place.file):
        parse_json_lines(name, place.read(name), place.reading, place.query, tarred)


_TABLE = "`audio`, `file_name`, `audio_filepath`, `path`, `wav_filename`, ... and a text"
FORMS = (
    Form(
        "Kaldi",
        "the folder, or its `wav.scp`",
        "`wav.scp`, `text`; optional `segments`, `utt2spk`",
        _read_kaldi,
        suffixes=kaldi.FILES,
        in_folder=("wav.scp",),
    ),
    Form(
        "Hugging Face, saved (`save_to_disk`)",
        "the folder of a dataset, or of its splits",
        _TABLE,
        read_arrow,
        suffixes=("state.json", "dataset_info.json"),
        is_folder=lambda place, names: not {"state.json", "dataset_dict.json"}.isdisjoint(names),
    ),
    Form(
        "JSON lines: NeMo, AudioFolder, Lhotse's cuts",
        "`manifest.jsonl`, `metadata.jsonl`, `cuts.jsonl`, `tarred_audio_manifest.json` in a "
        "folder, or any name; a range (`manifest__OP_0..7_CL_.json`) for several",
        "`audio_filepath`, `text`; optional `duration`, `offset` (seconds), `channel`, `language` "
        "or `lang`, `speaker`, `session`; or `file_name` and a text as in tables; or a cut, each "
        "supervision an utterance. With NeMo's tars beside it (`audio_0.tar`), or named "
        "(`?tar=audio__OP_0..7_CL_.tar`), audio is read from them",
        _read_json_lines,
        suffixes=(".jsonl", ".json", ".ndjson", ".manifest", ".txt", ""),
        in_folder=("metadata.jsonl", "manifest.jsonl", "cuts.jsonl", "tarred_audio_manifest.json"),
    ),
    Form(
        "CSV, TSV: AudioFolder, Common Voice, DeepSpeech",
        "`metadata.csv` in a folder, `<split>.tsv` in Common Voice's (`?split=test`), or any "
        "`.csv`, `.tsv`",
        "a header; commas, semicolons, tabs or bars; " + _TABLE,
        read_table,
        suffixes=(".csv", ".tsv"),
        in_folder=("metadata.csv",),
    ),
    Form(
        "Lhotse's Shar",
        "the folder with `cuts.000000.jsonl.gz` and `recording.000000.tar`",
        "each supervision is an utterance",
        read_shar,
        is_folder=lambda place, names: (
            any(n.startswith("cuts.") for n in names)
            and any(n.startswith("recording.") for n in names)
        ),
    ),
    Form(
        "STM",
        "a folder of `.stm` files, or one",
        "recording, channel, speaker, start, end, `<labels>`, text; the recording's audio beside "
        "it, in `wav/`, `audio/` or `sph/`",
        read_stm,
        suffixes=(".stm",),
        is_folder=lambda place, names: any(name.endswith(STM) for name in names),
    ),
    Form(
        "WebDataset",
        "a `.tar`, a range (`set-{000..011}.tar`), or their folder",
        "audio and `.txt`, `.text` or `.json` of one name",
        read_webdataset,
        suffixes=(".tar",),
        is_folder=lambda place, names: any(name.endswith(".tar") for name in names),
    ),
    Form(
        "Hugging Face, parquet",
        "a `.parquet`, a folder of them, or `hf://datasets/organisation/name@revision` "
        "(`?config=pt&split=test`)",
        _TABLE + "; audio in the file, or paths",
        read_parquet,
        suffixes=(".parquet",),
        in_folder=("metadata.parquet",),
        is_folder=lambda place, names: bool(place.walk(".parquet")),
    ),
    Form(
        "LibriSpeech",
        "a folder with `*.trans.txt` in it or below",
        "the utterance's name, then its text; `flac` or `wav` beside it",
        read_librispeech,
        is_folder=lambda place, names: bool(place.walk(TRANSCRIPTS)),
    ),
)
_WAYS_OUT = {
    ".ark": "copy the audio to files (copy-feats does not apply; wav-copy ark:x.ark scp,t:...)",
    ".scp": "give the Kaldi folder with its wav.scp and text",
    ".gz": "unpack it: members of a compressed tar cannot be read by themselves",
    ".tgz": "unpack it: members of a compressed tar cannot be read by themselves",
    ".zip": "unpack it, and give the folder",
    ".pkl": "pickled files are never read; convert it to JSON lines",
    ".pt": "pickled files are never read; convert it to JSON lines",
    ".ctm": "a CTM has no references; convert it with ctm2stm, or to JSON lines",
    ".textgrid": "convert it to JSON lines (audio_filepath, offset, duration, text)",
    ".eaf": "convert it to JSON lines (audio_filepath, offset, duration, text)",
    ".srt": "convert it to JSON lines (audio_filepath, offset, duration, text)",
    ".vtt": "convert it to JSON lines (audio_filepath, offset, duration, text)",
    ".rttm": "an RTTM has no text; convert it to JSON lines with text",
    ".arrow": "give its folder, as save_to_disk wrote it",
    ".xlsx": "save it as CSV",
    ".h5": "convert it with datasets: to_parquet, or save_to_disk",
    ".lance": "convert it with datasets: to_parquet, or save_to_disk",
}


def read_manifest(
    path: Path,
    *,
    label: str,
    roots: Roots = None,
    query: DatasetQuery | None = None,
) -> Manifest:
    """Return the manifest at a path: a file, or the folder that it lies in, in one of FORMS.

    `label` names the dataset in messages. All that is read must lie under `roots`, links followed
    (None: anywhere). Audio is not looked at.

    Raises:
        SourceNotFoundError: there is no such file.
        SourceNotAllowedError: a file is not a regular one, or outside the roots.
        SourceTooLargeError: a file has over 256 MB, or a million lines.
        InvalidManifestError: lists the first ten faults with their lines.

    """
    query = query or DatasetQuery()
    if os.path.isdir(path):  # noqa: PTH112 - never raises
        form, place = _in_folder(Place(path, "", label, roots, query))
    else:
        place = Place(path.parent, path.name, label, roots, query)
        form = _of_file(place)
    form.read(place)
    return finish(place)


def finish(place: Place) -> Manifest:
    """Return what was read as a manifest; InvalidManifestError for faults or no utterances."""
    reading = place.reading
    if reading.problems:
        raise _refusal(place.label, reading)
    utterances = tuple(reading.utterances[: place.query.limit])
    if not utterances:
        raise InvalidManifestError(
            f"{place.label}: {place.file or 'the folder'} holds no utterances; write one on each "
            "line."
        )
    return Manifest(
        place.folder, utterances, _digest(place, utterances), reading.members, place.unread
    )


def audio_source(manifest: Manifest, utterance: Utterance) -> AudioSource:
    """Return where the utterance's audio should be; a relative path starts at the manifest."""
    member = manifest.members.get(utterance.audio)
    return member or AudioSource(manifest.folder / utterance.audio)


def forms_table() -> str:
    """Return the forms as a table of docs/evaluation.md."""
    rows = "".join(f"| {form.name} | {form.given} | {form.fields} |\n" for form in FORMS)
    return f"| form | given as | what is read |\n| --- | --- | --- |\n{rows}"


def _of_file(place: Place) -> Form:
    name = place.file.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if suffix != ".tar" or name == place.file:
        for form in FORMS:
            if name in form.suffixes or suffix in form.suffixes:
                return form
    ending = Path(place.file).suffix.lower()
    if way_out := _WAYS_OUT.get(ending) or _WAYS_OUT.get(suffix):
        raise InvalidManifestError(f"{place.label}: {place.file} is not read; {way_out}.")
    return next(form for form in FORMS if "" in form.suffixes)


def _in_folder(place: Place) -> tuple[Form, Place]:
    names = place.names()
    found = [
        (form, name)
        for form in FORMS
        for plain in form.in_folder
        for name in (plain, f"{plain}.gz")
        if name in names
    ]
    if len(found) > 1:
        raise InvalidManifestError(
            f"{place.label}: the folder holds {' and '.join(name for _, name in found)}; give the "
            "path of the one to use."
        )
    if found:
        form, name = found[0]
        return form, replace(place, file=name)
    if split := _split(place, names):
        return _in_folder(split) if not split.file else (_of_file(split), split)
    for form in FORMS:
        if form.is_folder(place, names):
            return form, place
    listed = ", ".join(name for form in FORMS for name in form.in_folder)
    raise InvalidManifestError(
        f"{place.label}: the folder holds no manifest; there must be one of {listed}, or another "
        "form of docs/evaluation.md, or give the manifest's own path."
    )


def _split(place: Place, names: list[str]) -> Place | None:
    """Return the place of the split asked for: a table of Common Voice, or a folder."""
    tables = {
        name.removesuffix(".gz").removesuffix(".tsv"): name
        for name in once(names)
        if name.endswith((".tsv", ".tsv.gz"))
    }
    if "clips/" not in names:
        tables = {}
    manifests = [name for form in FORMS for name in form.in_folder]
    folders = {
        name[:-1]: name[:-1]
        for name in names
        if name.endswith("/") and any(place.has(f"{name}{one}") for one in manifests)
    }
    if tables:
        return replace(place, file=pick(place.label, "split", tables, place.query.split))
    if folders:
        folder = pick(place.label, "split", folders, place.query.split)
        return replace(place, folder=place.folder / folder)
    return None


def _digest(place: Place, utterances: tuple[Utterance, ...]) -> str:
    """Return the digest of what decides results.

    That is the sha256 of the one file, of the names and digests of several, or of the utterances
    themselves where the query or a container has a say.
    """
    digests = place.digests
    if place.query != DatasetQuery() or place.reading.members or not digests:
        whole = hashlib.sha256()
        for utterance in utterances:
            whole.update(utterance.model_dump_json().encode() + b"\n")
        return whole.hexdigest()
    if len(digests) == 1:
        return next(iter(digests.values()))
    listed = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(listed.encode()).hexdigest()


def _refusal(label: str, reading: Reading) -> InvalidManifestError:
    rest = reading.faults - 1
    more = f" ({rest} more lines are wrong too)" if rest else ""
    message = f"{label}: {reading.problems[0].message}{more}"
    return InvalidManifestError(message, problems=reading.problems)
