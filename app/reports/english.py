"""English normalisers: OpenAI's (Whisper) and the Open ASR Leaderboard's, which is based on it.

Ported from `whisper/normalizers/english.py` of openai/whisper (26a7cac; MIT, Copyright (c) 2022
OpenAI; tables/LICENSE-openai-whisper.txt) and `normalizer/normalizer.py` of
huggingface/open_asr_leaderboard (d1e99b2; Apache-2.0, Copyright 2022 The OpenAI team and The
HuggingFace Team). The rules and their order are unchanged, including odd ones, except that patterns
take linear time and that the number of digits in one number is bounded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from typing import Any

# Python refuses to convert more than 4,300 digits.
_MOST_DIGITS = 300

_FILLERS = re.compile(r"\b(hmm|mm|mhm|mmm|uh|um)\b")
_LEADERBOARD_FILLERS = re.compile(
    r"\b(hmm|mm|mhm|mmm|uh|um|ah|aha|ahh|ahm|eh|ehehe|em|hm|huh|hum|mhum|uhm|umm|uhuh)\b"
)
_CONTRACTIONS = {
    r"\bwon't\b": "will not",
    r"\bcan't\b": "can not",
    r"\blet's\b": "let us",
    r"\bain't\b": "aint",
    r"\by'all\b": "you all",
    r"\bwanna\b": "want to",
    r"\bgotta\b": "got to",
    r"\bgonna\b": "going to",
    r"\bi'ma\b": "i am going to",
    r"\bimma\b": "i am going to",
    r"\bwoulda\b": "would have",
    r"\bcoulda\b": "could have",
    r"\bshoulda\b": "should have",
    r"\bma'am\b": "madam",
    # titles
    r"\bmr\b": "mister ",
    r"\bmrs\b": "missus ",
    r"\bst\b": "saint ",
    r"\bdr\b": "doctor ",
    r"\bprof\b": "professor ",
    r"\bcapt\b": "captain ",
    r"\bgov\b": "governor ",
    r"\bald\b": "alderman ",
    r"\bgen\b": "general ",
    r"\bsen\b": "senator ",
    r"\brep\b": "representative ",
    r"\bpres\b": "president ",
    r"\brev\b": "reverend ",
    r"\bhon\b": "honorable ",
    r"\basst\b": "assistant ",
    r"\bassoc\b": "associate ",
    r"\blt\b": "lieutenant ",
    r"\bcol\b": "colonel ",
    r"\bjr\b": "junior ",
    r"\bsr\b": "senior ",
    r"\besq\b": "esquire ",
    # perfect tenses
    r"'d been\b": " had been",
    r"'s been\b": " has been",
    r"'d gone\b": " had gone",
    r"'s gone\b": " has gone",
    r"'d done\b": " had done",
    r"'s got\b": " has got",
    # the rest
    r"n't\b": " not",
    r"'re\b": " are",
    r"'s\b": " is",
    r"'d\b": " would",
    r"'ll\b": " will",
    r"'t\b": " not",
    r"'ve\b": " have",
    r"'m\b": " am",
}
# The leaderboard keeps the genitive of "the dog's tail".
_LEADERBOARD_CONTRACTIONS = {
    (
        r"\b(it|he|she|what|that|who|here|there|how|when|where|why|this)'s\b"
        if pattern == r"'s\b"
        else pattern
    ): (r"\1 is" if pattern == r"'s\b" else replacement)
    for pattern, replacement in _CONTRACTIONS.items()
}
_LEADERBOARD_COMPOUNDS = {
    r"\bet\s+cetera\b": "etc",
    r"\bal\s+right\b": "alright",
    r"\ball\s+right\b": "alright",
    r"\bhow\s+ever\b": "however",
    r"\bwi\s+fi\b": "wifi",
    r"\bhi\s+fi\b": "hifi",
    r"\blo\s+fi\b": "lofi",
    r"\bsci\s+fi\b": "scifi",
    r"\be\s+mail\b": "email",
    r"\be\s+book\b": "ebook",
    r"\be\s+commerce\b": "ecommerce",
    r"\bx\s+ray\b": "xray",
    r"\bt\s+shirt\b": "tshirt",
    r"\ba\s+m\b": "am",
    r"\bp\s+m\b": "pm",
    r"\bo\s+k\b": "okay",
}
# Letters that NFKD does not decompose.
_PLAIN_LETTERS = {
    "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "ß": "ss", "ẞ": "SS",
    "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "th", "ł": "l", "Ł": "L",
}  # fmt: skip
_KEPT_SYMBOLS = ".%$¢€£"


def openai_english() -> Callable[[str], str]:
    """Return OpenAI's EnglishTextNormalizer, the one behind Whisper's published figures."""
    spelling = _table("english_spelling.json")
    return _English(_FILLERS, _CONTRACTIONS, {}, lambda words: _mapped(words, spelling))


def leaderboard_english() -> Callable[[str], str]:
    """Return the leaderboard's EnglishTextNormalizer; compounds are joined when scoring."""
    tables = _table("open_asr.json")
    changed = {**_table("english_spelling.json"), **tables["spelling"]}
    spelling = {word: other for word, other in changed.items() if other is not None}
    names = tables["names"]
    return _English(
        _LEADERBOARD_FILLERS,
        _LEADERBOARD_CONTRACTIONS,
        _LEADERBOARD_COMPOUNDS,
        lambda words: _acronyms(_mapped(_mapped(words, spelling), names)),
    )


def without_brackets(text: str) -> str:
    """Return a text without noises and remarks in [], <> or (), as Whisper does.

    Text after an unclosed bracket is kept. It is matched as a whole, since trying each further
    bracket would take quadratic time.
    """
    text = re.sub(r"[<\[][^>\]]*([>\]])?", _closed, text)
    return re.sub(r"\([^)]+(\))?", _closed, text)


def _closed(found: re.Match[str]) -> str:
    return "" if found[1] else found[0]


class _English:
    """The rules that both share, in order; `words` applies the rules for single words."""

    def __init__(
        self,
        fillers: re.Pattern[str],
        contractions: Mapping[str, str],
        compounds: Mapping[str, str],
        words: Callable[[list[str]], list[str]],
    ) -> None:
        self.fillers = fillers
        self.contractions = _compiled(contractions)
        self.compounds = _compiled(compounds)
        self.words = words

    def __call__(self, text: str) -> str:
        text = self.fillers.sub("", without_brackets(text.lower()))
        # Matches only at the first space of a run: at every space it would take quadratic time.
        text = re.sub(r"(?<!\s)\s+'", "'", text)
        for pattern, replacement in self.contractions:
            text = pattern.sub(replacement, text)
        text = re.sub(r"(\d),(\d)", r"\1\2", text)
        text = re.sub(r"\.([^0-9]|$)", r" \1", text)
        text = _without_symbols(text)
        for pattern, replacement in self.compounds:
            text = pattern.sub(replacement, text)
        text = " ".join(self.words(_numbers(text).split()))
        # Signs without a number.
        text = re.sub(r"[.$¢€£]([^0-9])", r" \1", text)
        return re.sub(r"([^0-9])%", r"\1 ", text)


def _compiled(rules: Mapping[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules.items()]


@lru_cache(maxsize=8)
def _table(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("app.reports") / "tables" / name).read_text("utf-8"))
    return found


def _without_symbols(text: str) -> str:
    return "".join(_plain(letter) for letter in unicodedata.normalize("NFKD", text))


@lru_cache(maxsize=4096)
def _plain(letter: str) -> str:
    if letter in _KEPT_SYMBOLS:
        return letter
    if letter in _PLAIN_LETTERS:
        return _PLAIN_LETTERS[letter]
    category = unicodedata.category(letter)
    if category == "Mn":
        return ""
    return " " if category[0] in "MSP" else letter


def _mapped(words: list[str], mapping: Mapping[str, str]) -> list[str]:
    # A replacement may consist of two words.
    return " ".join(mapping.get(word, word) for word in words).split()


def _acronyms(words: list[str]) -> list[str]:
    """Return the words with runs of single letters and digits joined: "b b c" becomes "bbc".

    A run has at least two words, or three if it contains "a" or "i".
    """
    joined: list[str] = []
    run: list[str] = []
    for word in [*words, ""]:
        if len(word) == 1 and word.isalnum():
            run.append(word)
            continue
        long_enough = len(run) >= (3 if {"a", "i"} & set(run) else 2)
        joined += ["".join(run)] if long_enough else run
        run = []
        if word:
            joined.append(word)
    return joined


# Numbers ----------------------------------------------------------------------------------------

_ZEROS = {"o", "oh", "zero"}
_ONES = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14,
    "fifteen": 15, "sixteen": 16, "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_ONES_SUFFIXED = {
    **{"sixes" if name == "six" else f"{name}s": (value, "s") for name, value in _ONES.items()},
    "zeroth": (0, "th"),
    "first": (1, "st"),
    "second": (2, "nd"),
    "third": (3, "rd"),
    "fifth": (5, "th"),
    "twelfth": (12, "th"),
    **{
        name + ("h" if name.endswith("t") else "th"): (value, "th")
        for name, value in _ONES.items()
        if value > 3 and value not in {5, 12}
    },
}
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90,
}  # fmt: skip
_TENS_SUFFIXED = {
    **{name.replace("y", "ies"): (value, "s") for name, value in _TENS.items()},
    **{name.replace("y", "ieth"): (value, "th") for name, value in _TENS.items()},
}
_MULTIPLIERS = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "quadrillion": 10**15, "quintillion": 10**18, "sextillion": 10**21, "septillion": 10**24,
    "octillion": 10**27, "nonillion": 10**30, "decillion": 10**33,
}  # fmt: skip
_MULTIPLIERS_SUFFIXED = {
    **{f"{name}s": (value, "s") for name, value in _MULTIPLIERS.items()},
    **{f"{name}th": (value, "th") for name, value in _MULTIPLIERS.items()},
}
_DECIMALS = {*_ONES, *_TENS, *_ZEROS}
_SIGNS_BEFORE = {"minus": "-", "negative": "-", "plus": "+", "positive": "+"}
_CURRENCIES = {
    "pound": "£", "pounds": "£", "euro": "€", "euros": "€", "dollar": "$", "dollars": "$",
    "cent": "¢", "cents": "¢",
}  # fmt: skip
_PREFIXES = {*_SIGNS_BEFORE.values(), *_CURRENCIES.values()}
_NUMBER_WORDS = {
    *_ZEROS, *_ONES, *_ONES_SUFFIXED, *_TENS, *_TENS_SUFFIXED, *_MULTIPLIERS,
    *_MULTIPLIERS_SUFFIXED, *_SIGNS_BEFORE, *_CURRENCIES, "per", "percent",
    "and", "double", "triple", "point",
}  # fmt: skip
_NUMERIC = re.compile(rf"(?=\d{{1,{_MOST_DIGITS}}}(?!\d))\d+(\.\d{{1,{_MOST_DIGITS}}})?")


def _numbers(text: str) -> str:
    """Return the text with numbers in digits: "twenty one dollars" becomes "$21"."""
    text = " ".join(_digits(_halves(text).split()))
    # "$2 and ¢7" becomes "$2.07", "$0.07" becomes "¢7".
    text = re.sub(r"([€£$])([0-9]+) (?:and )?¢([0-9]{1,2})\b", _with_cents, text)
    text = re.sub(r"[€£$]0.([0-9]{1,2})\b", lambda found: f"¢{int(found[1])}", text)
    return re.sub(r"\b1(s?)\b", r"one\1", text)


def _with_cents(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}.{int(found[3]):02d}"


def _halves(text: str) -> str:
    """Return the text with "point five" for "and a half", and digits separated from letters."""
    parts = []
    segments = re.split(r"\band\s+a\s+half\b", text)
    for position, segment in enumerate(segments):
        if not segment.strip():
            continue
        parts.append(segment)
        if position < len(segments) - 1:
            last = segment.rsplit(maxsplit=2)[-1]
            parts.append("point five" if last in _DECIMALS | _MULTIPLIERS.keys() else "and a half")
    text = " ".join(parts)
    text = re.sub(r"([a-z])([0-9])", r"\1 \2", text)
    text = re.sub(r"([0-9])([a-z])", r"\1 \2", text)
    return re.sub(r"([0-9])\s+(st|nd|rd|th|s)\b", r"\1\2", text)


def _digits(words: list[str]) -> Iterator[str]:
    """Yield the words, with spelled-out numbers as digits.

    `value` is the number read so far: an int if more may be added ("twenty" before "one"), or a
    string of digits ("one oh one").
    """
    prefix: str | None = None
    value: str | int | None = None
    skip = False

    def output(result: str | int) -> str:
        nonlocal prefix, value
        text = (prefix or "") + str(result)
        prefix = value = None
        return text

    for position, current in enumerate(words):
        if skip:
            skip = False
            continue
        previous = words[position - 1] if position else None
        following = words[position + 1] if position + 1 < len(words) else None
        numeric_follows = following is not None and _NUMERIC.fullmatch(following) is not None
        number_follows = following in _NUMBER_WORDS or numeric_follows
        has_prefix = current[0] in _PREFIXES
        bare = current[1:] if has_prefix else current

        if _NUMERIC.fullmatch(bare):
            if isinstance(value, str) and value.endswith("."):
                value += current
                continue
            if value is not None:
                yield output(value)
            prefix = current[0] if has_prefix else prefix
            fraction = Fraction(bare)
            value = fraction.numerator if fraction.denominator == 1 else bare
        elif current not in _NUMBER_WORDS:
            if value is not None:
                yield output(value)
            yield output(current)
        elif current in _ZEROS:
            value = str(value or "") + "0"
        elif current in _ONES:
            value = _append_ones(value, _ONES[current], previous)
        elif current in _ONES_SUFFIXED:
            ones, suffix = _ONES_SUFFIXED[current]
            yield output(f"{_append_ones(value, ones, previous)}{suffix}")
        elif current in _TENS:
            value = _append_tens(value, _TENS[current])
        elif current in _TENS_SUFFIXED:
            tens, suffix = _TENS_SUFFIXED[current]
            yield output(f"{_append_tens(value, tens)}{suffix}")
        elif current in _MULTIPLIERS or current in _MULTIPLIERS_SUFFIXED:
            plain = current in _MULTIPLIERS
            multiplier, suffix = (
                (_MULTIPLIERS[current], "") if plain else _MULTIPLIERS_SUFFIXED[current]
            )
            # "zero million" is nothing times a million, "zero millions" is not.
            as_fraction = isinstance(value, str) or (plain and value == 0)
            product = _multiplied(value, multiplier, as_fraction=as_fraction)
            if product is None and value is not None:
                yield output(value)
            value = multiplier if product is None else product
            if not plain:
                yield output(f"{value}{suffix}")
        elif current in _SIGNS_BEFORE:
            if value is not None:
                yield output(value)
            if number_follows:
                prefix = _SIGNS_BEFORE[current]
            else:
                yield output(current)
        elif current in _CURRENCIES:
            if value is not None:
                prefix = _CURRENCIES[current]
                yield output(value)
            else:
                yield output(current)
        elif current == "percent":
            yield output(current if value is None else f"{value}%")
        elif current == "per":
            if value is not None and following == "cent":
                yield output(f"{value}%")
                skip = True
            else:
                if value is not None:
                    yield output(value)
                yield output(current)
        elif not number_follows:
            if value is not None:
                yield output(value)
            yield output(current)
        elif current == "and":
            # "two hundred and one"
            if previous not in _MULTIPLIERS:
                if value is not None:
                    yield output(value)
                yield output(current)
        elif current in {"double", "triple"}:
            if following in _ONES or following in _ZEROS:
                digit = str(_ONES.get(following or "", 0))
                value = str(value or "") + digit * (2 if current == "double" else 3)
                skip = True
            else:
                if value is not None:
                    yield output(value)
                yield output(current)
        elif following in _DECIMALS or numeric_follows:  # "point"
            value = str(value or "") + "."
    if value is not None:
        yield output(value)


def _append_ones(value: str | int | None, ones: int, previous: str | None) -> str | int:
    if value is None:
        return ones
    if isinstance(value, str) or previous in _ONES:
        if isinstance(value, str) and previous in _TENS and ones < 10:
            return value[:-1] + str(ones)  # "one twenty" was "120"
        return f"{value}{ones}"
    whole = 10 if ones < 10 else 100
    return value + ones if value % whole == 0 else f"{value}{ones}"


def _append_tens(value: str | int | None, tens: int) -> str | int:
    if value is None:
        return tens
    if isinstance(value, str) or value % 100:
        return f"{value}{tens}"
    return value + tens


def _multiplied(value: str | int | None, multiplier: int, *, as_fraction: bool) -> int | None:
    """Return the product, or None where the value is no number that can be multiplied."""
    if value is None:
        return None
    if not as_fraction:
        assert isinstance(value, int)
        # Multiply only what follows the last thousands: "one million two" times a thousand.
        return value // 1000 * 1000 + value % 1000 * multiplier
    if len(str(value)) > _MOST_DIGITS:
        return None
    try:
        product = Fraction(value) * multiplier
    except ValueError:  # "1.2.3"
        return None
    return product.numerator if product.denominator == 1 else None
