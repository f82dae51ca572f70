"""Text normalisers for scoring; each has a name and a version."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import get_args

import regex

from app.contract.evaluation import NormalizerName
from app.reports.english import leaderboard_english, openai_english, without_brackets
from app.reports.leaderboard import leaderboard_other
from app.reports.numerals import spell_digits, spell_numbers, unify_words
from app.reports.readings import READINGS

# Raise this when one of our rules changes; the version also names the rules' origin.
_RULES = "2"
_WHISPER = "openai/whisper 26a7cac"
_LEADERBOARD = "open_asr_leaderboard d1e99b2"
_LONGEST_REMEMBERED = 1_000

_INVISIBLE = regex.compile(r"[\p{Cf}--[\u200c\u200d]]", flags=regex.V1)
_MARKS_ALONE = regex.compile(r"(?<!\S)[\p{M}\u200c\u200d]+")
# NFKC sorts marks in quadratic time; UAX #15 (stream-safe text) allows 30 of them on a letter.
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻʹ′`´＇ꞌ", "'"))
# Kept from NFKC, which would turn "1.ª" into "1.a".
_ORDINAL_SIGNS = regex.compile(r"[^ªº]+")


@dataclass(frozen=True)
class Normalizer:
    """A normalising function with name and version; only scores with equal ones are comparable.

    With `joins_compounds`, a compound that only one side writes as one word counts as correct.
    """

    name: NormalizerName
    version: str
    function: Callable[[str], str]
    joins_compounds: bool = False

    def __call__(self, text: str) -> str:
        """Return the normalised text, with words separated by single spaces."""
        # Cached: all systems share references, and many hypotheses.
        return _remembered(self, text) if len(text) <= _LONGEST_REMEMBERED else self._apply(text)

    def _apply(self, text: str) -> str:
        return " ".join(self.function(text).split())

    def as_record(self) -> dict[str, str]:
        """Return `{"name", "version"}`, as results show it."""
        return {"name": self.name, "version": self.version}


@lru_cache(maxsize=50_000)
def _remembered(normalizer: Normalizer, text: str) -> str:
    return normalizer._apply(text)


@lru_cache(maxsize=64)
def find_normalizer(name: NormalizerName, language: str | None = None) -> Normalizer:
    """Return the normaliser with this name; ValueError lists the known names.

    `language` is the spoken language: the leaderboard has other rules for other than English.
    """
    numbers = f"num2words {version('num2words')}"
    if name == "none":
        return Normalizer(name, "1", str)
    if name == "basic":
        return Normalizer(name, f"{_RULES} ({_WHISPER})", _Unified(_basic))
    if name == "english":
        return Normalizer(name, f"{_RULES} ({_WHISPER})", _Unified(openai_english()))
    if name == "english_spelled":
        return Normalizer(name, f"{_RULES} ({_WHISPER}, {numbers})", _EnglishSpelled())
    if name == "open_asr":
        if language in {None, "en"}:
            rules, where = leaderboard_english(), _LEADERBOARD
        else:
            rules, where = leaderboard_other(language), f"{_LEADERBOARD}, {language}, {numbers}"
        return Normalizer(name, f"{_RULES} ({where})", _Unified(rules), joins_compounds=True)
    if name in READINGS:
        spelled = _Spelled(READINGS[name].code)
        return Normalizer(name, f"{_RULES} ({_WHISPER}, {numbers})", spelled)
    raise ValueError(f'unknown normaliser "{name}"; known: {", ".join(get_args(NormalizerName))}')


def unify(text: str) -> str:
    """Return the text with unified typography; ª and º are kept.

    Unifies apostrophes, composed and decomposed letters, ligatures, full-width characters,
    no-break spaces and the dotted capital İ. Removes invisible characters, except the joiners that
    some scripts need.
    """
    text = _TOO_MANY_MARKS.sub(r"\1", _INVISIBLE.sub("", text.translate(_APOSTROPHES)))
    text = _ORDINAL_SIGNS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return text.replace("İ", "I").replace("i\u0307", "i")


@dataclass(frozen=True)
class _Unified:
    """A function applied to unified texts."""

    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.function(unify(text))


def _basic(text: str) -> str:
    """Whisper's multilingual normaliser, but combining marks stay with their letter.

    Whisper's replaces every mark by a space, which splits Hindi words. Marks without a letter (an
    emoji's variation selector) are removed.
    """
    composed = unicodedata.normalize("NFKC", without_brackets(text.lower()))
    cleaned = "".join(map(_without_sign, composed)).lower()
    return unicodedata.normalize("NFC", _MARKS_ALONE.sub("", cleaned))


@lru_cache(maxsize=4096)
def _without_sign(letter: str) -> str:
    return " " if unicodedata.category(letter)[0] in "SP" else letter


class _Spelled:
    """`basic`, after spelling out numbers and their signs."""

    def __init__(self, language: str) -> None:
        self.language = language

    def __call__(self, text: str) -> str:
        spelled = spell_numbers(without_brackets(unify(text).lower()), self.language)
        return unify_words(_basic(spelled), self.language)


_SPOKEN_SIGNS = {
    "%": "percent", "$": "dollars", "£": "pounds", "€": "euros", "¢": "cents", ".": "point",
    "-": "minus", "+": "plus",
}  # fmt: skip


class _EnglishSpelled:
    """Whisper's English normaliser, with digits and signs of numbers spelled out before and after.

    Whisper's alone turns "three seven one" into "371" but "3, 7, 1." into "3 7 one", so that a
    correct transcript scores as errors.
    """

    def __init__(self) -> None:
        self.english = openai_english()

    def __call__(self, text: str) -> str:
        text = self.english(spell_numbers(without_brackets(unify(text).lower()), "en"))
        text = regex.sub(
            r"[%$£€¢.+-]", lambda found: f" {_SPOKEN_SIGNS[found[0]]} ", " ".join(text.split())
        )
        return _basic(spell_digits(text, "en"))
