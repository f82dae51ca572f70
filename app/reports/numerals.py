"""Spells out numbers written in digits, so that "16" and "dezasseis" are the same words."""

from __future__ import annotations

import re
from functools import lru_cache

from num2words import num2words

# 27 digits is where num2words gives up in Portuguese; nobody reads so many aloud as one number.
_LONGEST = 15
_POINT_LANGUAGES = frozenset({"en"})
# "21st" is an ordinal, which Whisper's English normaliser reads itself.
_ORDINALS = {"en": r"|(?:st|nd|rd|th|s)\b"}
_NO_BREAK_SPACES = "\u00a0\u202f\u2009"


def spell_numbers(text: str, language: str) -> str:
    """Return the text with every number in words of `language` (a num2words code such as pt_BR).

    Thousands' separators and one decimal separator are read as the language writes them; a number
    with a leading zero, or too long to be a quantity, is read digit by digit.
    """
    return _pattern(language).sub(lambda found: f" {_spell(found, language)} ", text)


def spell_digits(text: str, language: str) -> str:
    """Return the text with every digit as a word of its own: "371" is "three seven one"."""
    return re.sub(r"[0-9]", lambda found: f" {_word(found[0], language)} ", text)


@lru_cache(maxsize=32)
def _pattern(language: str) -> re.Pattern[str]:
    decimal, thousands = (".", ",") if language in _POINT_LANGUAGES else (",", ".")
    separator = f"[{re.escape(thousands)}{_NO_BREAK_SPACES}]"
    return re.compile(
        rf"(?<![0-9])(?P<whole>[1-9][0-9]{{0,2}}(?:{separator}[0-9]{{3}})+(?![0-9])|[0-9]+)"
        rf"(?![0-9]{_ORDINALS.get(language, '')})"
        # "2,7,1" is a list: a decimal part is the last of its number and the only one.
        rf"(?:(?<![0-9]{re.escape(decimal)}[0-9])(?P<part>{re.escape(decimal)}[0-9]+)"
        rf"(?![{re.escape(decimal)}]?[0-9]))?"
    )


def _spell(found: re.Match[str], language: str) -> str:
    whole = re.sub(r"[^0-9]", "", found["whole"])
    if found["part"]:
        digits = found["part"][1:]
        if len(whole) + len(digits) <= _LONGEST:
            return _word(f"{whole}.{digits}", language)
        return f"{_cardinal(whole, language)} {spell_digits(digits, language)}"
    return _cardinal(whole, language)


def _cardinal(digits: str, language: str) -> str:
    if len(digits) > _LONGEST or (digits[0] == "0" and len(digits) > 1):
        return spell_digits(digits, language)
    return _word(digits, language)


@lru_cache(maxsize=4096)
def _word(number: str, language: str) -> str:
    # As text, 3.5 would lose its decimals in Italian.
    return str(num2words(float(number) if "." in number else int(number), lang=language))
