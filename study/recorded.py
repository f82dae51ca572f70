"""Recorded speech: published sets of utterances, and their disjoint splits."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from app.contract.evaluation import Group, NormalizerName
from samples.domains import Utterance
from samples.speaking import SAMPLE_RATE
from study.texts import Split

MOST_SECONDS = 20.0
_LEAST_PROMPT_WORDS = 4
Splits = Mapping[Split, Sequence["Recording"]]


@dataclass(frozen=True)
class RecordedSet:
    """A set and how many of its utterances are for choosing (`dev`) and for testing.

    `folder` has a manifest; or `voice` is a folder of Asterisk's prompts. The others are for
    training if `trained`.
    """

    name: str
    group: Group
    language: str
    normalizer: NormalizerName
    dev: int
    test: int
    folder: str = ""
    voice: str = ""
    trained: bool = False
    upper_case: bool = False


# fmt: off
SETS = (
    RecordedSet("european_portuguese", "in_domain", "pt", "portuguese", dev=8, test=18,
                folder="pt_pt_caixamagica", trained=True),
    RecordedSet("telephone", "in_domain", "en", "english_spelled", dev=16, test=40,
                folder="en_asterisk8k", trained=True),
    RecordedSet("non_native", "in_domain", "en", "english_spelled", dev=20, test=60,
                folder="en_speechocean", trained=True, upper_case=True),
    RecordedSet("german", "in_domain", "de", "german", dev=12, test=40,
                folder="de_kerstin", trained=True),
    RecordedSet("brazilian_games", "out_of_domain", "pt", "brazilian_portuguese", dev=0, test=72,
                folder="pt_br_gcompris"),
    RecordedSet("brazilian_read", "out_of_domain", "pt", "brazilian_portuguese", dev=0, test=20,
                folder="pt_br_ttsport"),
    RecordedSet("english", "english", "en", "english_spelled", dev=20, test=40,
                voice="en_US_f_Allison"),
    RecordedSet("french", "multilingual", "fr", "french", dev=16, test=40,
                voice="fr_CA_f_June"),
    RecordedSet("italian", "multilingual", "it", "italian", dev=16, test=40,
                voice="it_IT_m_Carlo"),
)
# fmt: on
EXPERTS = tuple(one.name for one in SETS if one.trained)


@dataclass(frozen=True)
class Recording:
    """A recorded utterance; `speaker` is empty where the set names none."""

    audio: Path
    text: str
    speaker: str
    seconds: float

    @property
    def words(self) -> str:
        """The text without case and punctuation."""
        return " ".join(re.findall(r"\w+", self.text.lower()))

    def read(self) -> Utterance:
        """Return the utterance at 16 kHz, its channels averaged."""
        samples, rate = soundfile.read(self.audio, dtype="float32", always_2d=True)
        resampled = soxr.resample(samples.mean(axis=1), rate, SAMPLE_RATE)
        return Utterance(self.text, self.speaker, np.asarray(resampled, dtype=np.float32))


def split_all(speech: Path, packages: Path, sets: Iterable[RecordedSet]) -> dict[str, Splits]:
    """Return the splits of all sets by name; no text is in two splits or in two sets."""
    taken: set[str] = set()
    found: dict[str, Splits] = {}
    for one in sets:
        recordings = read_prompts(packages, one) if one.voice else read_folder(speech, one)
        texts = {recording.words for recording in recordings}
        new = [recording for recording in recordings if recording.words not in taken]
        taken |= texts
        found[one.name] = split(
            one, [recording for recording in new if recording.seconds <= MOST_SECONDS]
        )
    return found


def read_folder(speech: Path, one: RecordedSet) -> list[Recording]:
    """Return the recordings of a folder with a manifest."""
    folder = speech.absolute() / one.folder
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Recording(
            folder / record["audio_filepath"],
            _sentence_case(record["text"]) if one.upper_case else record["text"],
            record.get("speaker", ""),
            record["duration"],
        )
        for record in map(json.loads, lines)
    ]


def read_prompts(packages: Path, one: RecordedSet) -> list[Recording]:
    """Return the prompts of a voice from Debian's packages, unpacked into `packages`."""
    share = packages.absolute() / "usr" / "share"
    name = f"core-sounds-{one.language}"
    listed = share / "doc" / f"asterisk-{name}" / f"{name}.txt.gz"
    sounds = share / "asterisk" / "sounds" / one.voice
    return [
        Recording(sounds / f"{file}.wav", text, one.voice, soundfile.info(str(path)).duration)
        for file, text in _listed_prompts(gzip.decompress(listed.read_bytes()).decode("utf-8-sig"))
        if (path := sounds / f"{file}.wav").exists()
    ]


def _listed_prompts(listing: str) -> Iterator[tuple[str, str]]:
    """Yield name and text of each sentence that says what is heard.

    Left out are single words, descriptions of tones in brackets, symbols, and lines whose
    accents were lost as question marks.
    """
    for line in listing.splitlines():
        name, _, text = line.partition(": ")
        spoken = not line.startswith(";") and not re.search(r"[\[\](){}<>#*/@?]", text)
        if spoken and len(re.findall(r"\w+", text)) >= _LEAST_PROMPT_WORDS:
            yield name, text.strip()


def split(one: RecordedSet, recordings: Sequence[Recording]) -> Splits:
    """Return the splits of a set, the same on every run.

    No text is in two splits; nor is a speaker, if the set has several.
    """
    by_speaker = len({recording.speaker for recording in recordings}) > 1
    groups: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        groups[recording.speaker if by_speaker else recording.words].append(recording)
    test: list[Recording] = []
    dev: list[Recording] = []
    train: list[Recording] = []
    for key in sorted(groups, key=lambda key: hashlib.sha256(key.encode()).digest()):
        if len(test) < one.test:
            test += groups[key]
        elif len(dev) < one.dev:
            dev += groups[key]
        elif one.trained:
            train += groups[key]
    # Two speakers may say the same.
    dev = _others(dev, test)
    return {"test": test, "dev": dev, "train": _others(train, [*test, *dev])}


def _others(recordings: Sequence[Recording], held_out: Sequence[Recording]) -> list[Recording]:
    """Return the recordings whose text is not that of a held-out one."""
    texts = {recording.words for recording in held_out}
    return [recording for recording in recordings if recording.words not in texts]


def write_manifest(recordings: Iterable[Recording], language: str, file: Path) -> None:
    """Write a NeMo manifest that refers to the audio where it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for recording in recordings:
        record = {
            "audio_filepath": str(recording.audio),
            "text": recording.text,
            "duration": recording.seconds,
            "language": language,
        }
        if recording.speaker:
            record["speaker"] = recording.speaker
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def _sentence_case(text: str) -> str:
    """Return "I KNOW WHAT I'M DOING" as "I know what I'm doing", as Whisper writes."""
    return re.sub(r"\bi\b", "I", text.capitalize())
