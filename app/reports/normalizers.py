"""Makes references and hypotheses comparable; every normaliser has a name and a version."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import get_args

import regex
from whisper_normalizer.basic import BasicTextNormalizer
from whisper_normalizer.english import EnglishTextNormalizer

from app.contract.evaluation import NormalizerName
from app.reports.numerals import spell_digits, spell_numbers

# Raise when a rule of ours changes; the libraries' versions are added to it.
_RULES = "1"
_LONGEST_REMEMBERED = 1_000
# num2words' code of each language that digits are spelled in.
_SPELLED = {
    "brazilian_portuguese": "pt_BR",
    "dutch": "nl",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "polish": "pl",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "ukrainian": "uk",
}
_WHISPERS_BASIC = BasicTextNormalizer(preserve_marks=True)
_INVISIBLE = regex.compile(r"[\p{Cf}--[\u200c\u200d]]", flags=regex.V1)
_MARKS_ALONE = regex.compile(r"(?<!\S)[\p{M}\u200c\u200d]+")


@dataclass(frozen=True)
class Normalizer:
    """A function on texts, by name and version; scores compare only under equal ones."""

    name: NormalizerName
    version: str
    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        """Return the normalised text, words parted by single spaces."""
        # Every system has the same references, and most of their hypotheses are alike.
        return _remembered(self, text) if len(text) <= _LONGEST_REMEMBERED else self._apply(text)

    def _apply(self, text: str) -> str:
        return " ".join(self.function(text).split())

    def as_record(self) -> dict[str, str]:
        """Return `{"name", "version"}`, as results show it."""
        return {"name": self.name, "version": self.version}


@lru_cache(maxsize=50_000)
def _remembered(normalizer: Normalizer, text: str) -> str:
    return normalizer._apply(text)


@lru_cache(maxsize=32)
def find_normalizer(name: NormalizerName) -> Normalizer:
    """Return the normaliser of this name; ValueError lists the names there are."""
    whisper = f"whisper-normalizer {version('whisper-normalizer')}"
    numbers = f"num2words {version('num2words')}"
    if name == "none":
        return Normalizer(name, _RULES, str)
    if name == "basic":
        return Normalizer(name, f"{_RULES} ({whisper})", _basic)
    if name == "english":
        return Normalizer(name, f"{_RULES} ({whisper})", EnglishTextNormalizer())
    if name == "english_spelled":
        return Normalizer(name, f"{_RULES} ({whisper}, {numbers})", _EnglishSpelled())
    if name in _SPELLED:
        spelled = _Spelled(_SPELLED[name])
        return Normalizer(name, f"{_RULES} ({whisper}, {numbers})", spelled)
    raise ValueError(f'no normaliser "{name}"; there are {", ".join(get_args(NormalizerName))}')


def _basic(text: str) -> str:
    """Whisper's multilingual normaliser with combining marks kept where they belong to a letter.

    Whisper's own puts a space for every mark and so breaks Hindi words apart. Marks left without
    a letter (an emoji's variation selector) and invisible characters, except the joiners that
    some scripts are written with, make no word.
    """
    cleaned = _WHISPERS_BASIC(_INVISIBLE.sub("", text))
    return unicodedata.normalize("NFC", _MARKS_ALONE.sub("", cleaned))


class _Spelled:
    """`basic`, numbers spelled out before it, and again what it turns into digits ("m²")."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, text: str) -> str:
        cleaned = _basic(spell_numbers(text, self.language))
        return _basic(spell_numbers(cleaned, self.language))


class _EnglishSpelled:
    """Whisper's English normaliser with every digit a word, before and after.

    By itself it makes "371" of "three seven one" but "3 7 one" of "3, 7, 1.", so that a correct
    answer scores as errors.
    """

    def __init__(self) -> None:
        self.english = EnglishTextNormalizer()

    def __call__(self, text: str) -> str:
        return _basic(spell_digits(self.english(spell_numbers(text, "en")), "en"))
