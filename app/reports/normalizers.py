"""Makes references and hypotheses comparable; every normaliser has a name and a version."""

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

# Raise when a rule of ours changes; what the others come from is added to it.
_RULES = "2"
_WHISPER = "openai/whisper 26a7cac"
_LEADERBOARD = "open_asr_leaderboard d1e99b2"
_LONGEST_REMEMBERED = 1_000

_INVISIBLE = regex.compile(r"[\p{Cf}--[\u200c\u200d]]", flags=regex.V1)
_MARKS_ALONE = regex.compile(r"(?<!\S)[\p{M}\u200c\u200d]+")
# Sorting marks takes quadratic time; UAX #15 (stream-safe text) allows 30 of them on a letter.
_TOO_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻʹ′`´＇ꞌ", "'"))
# NFKC would make letters of them, and "1.ª" could no longer be told from "1.a".
_ORDINAL_SIGNS = regex.compile(r"[^ªº]+")


@dataclass(frozen=True)
class Normalizer:
    """A function on texts, by name and version; scores compare only under equal ones.

    Where `joins_compounds`, words that are written apart on one side only count as hits.
    """

    name: NormalizerName
    version: str
    function: Callable[[str], str]
    joins_compounds: bool = False

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


@lru_cache(maxsize=64)
def find_normalizer(name: NormalizerName, language: str | None = None) -> Normalizer:
    """Return the normaliser of this name; ValueError lists the names there are.

    `language` is what was spoken: the leaderboard has other rules where it is not English.
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
    raise ValueError(f'no normaliser "{name}"; there are {", ".join(get_args(NormalizerName))}')


def unify(text: str) -> str:
    """Return the text with one form for what only typography tells apart; ª and º stay.

    Curly apostrophes, composed and decomposed letters, ligatures, full width, no-break spaces, the
    dotted capital İ; invisible characters go, except the joiners that some scripts need.
    """
    text = _TOO_MANY_MARKS.sub(r"\1", _INVISIBLE.sub("", text.translate(_APOSTROPHES)))
    text = _ORDINAL_SIGNS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return text.replace("İ", "I").replace("i\u0307", "i")


@dataclass(frozen=True)
class _Unified:
    """A function on texts that are unified before."""

    function: Callable[[str], str]

    def __call__(self, text: str) -> str:
        return self.function(unify(text))


def _basic(text: str) -> str:
    """Whisper's multilingual normaliser with combining marks kept where they belong to a letter.

    Whisper's own puts a space for every mark and so breaks Hindi words apart. Marks left without
    a letter (an emoji's variation selector) make no word.
    """
    composed = unicodedata.normalize("NFKC", without_brackets(text.lower()))
    cleaned = "".join(map(_without_sign, composed)).lower()
    return unicodedata.normalize("NFC", _MARKS_ALONE.sub("", cleaned))


@lru_cache(maxsize=4096)
def _without_sign(letter: str) -> str:
    return " " if unicodedata.category(letter)[0] in "SP" else letter


class _Spelled:
    """`basic`, with numbers and their signs spelled out before it."""

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
    """Whisper's English normaliser with every digit and sign of a number a word, before and after.

    By itself it makes "371" of "three seven one" but "3 7 one" of "3, 7, 1.", so that a correct
    answer scores as errors.
    """

    def __init__(self) -> None:
        self.english = openai_english()

    def __call__(self, text: str) -> str:
        text = self.english(spell_numbers(without_brackets(unify(text).lower()), "en"))
        text = regex.sub(
            r"[%$£€¢.+-]", lambda found: f" {_SPOKEN_SIGNS[found[0]]} ", " ".join(text.split())
        )
        return _basic(spell_digits(text, "en"))
