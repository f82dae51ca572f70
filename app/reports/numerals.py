"""Spells out digits and signs, so that "16" and "dezasseis" become the same words.

All patterns take linear time: a number is matched once, with its signs and units, and the parts of
the pattern are atomic, bounded or optional.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

import regex
from num2words import num2words

from app.reports.readings import ENGLISH, READINGS, Clock, Forms, Money, Ordinals, Reading

# num2words fails from 27 digits on in Portuguese.
_LONGEST = 15
# "em 2024.O presidente": no ordinal, but the next sentence.
_HIGHEST_BEFORE_LETTER = 99
_BY_CODE = {reading.code: reading for reading in (ENGLISH, *READINGS.values())}
_NOUN = regex.compile(r"\s+([^\W\d_]{1,40})")
_WORD_START, _WORD_END = r"(?<![^\W\d_])", r"(?![^\W\d_])"
_SCALES = {"c": "celsius", "f": "fahrenheit"}

Match = regex.Match[str]
Rules = tuple[tuple[regex.Pattern[str], str], ...]


def spell_numbers(text: str, language: str) -> str:
    """Return lower-case text with numbers in words of `language` (num2words' code, such as pt_BR).

    Separators of thousands and decimals are those of the language. A number with a leading zero, or
    too long to be a quantity, is read digit by digit. The language's `Reading` defines ordinals,
    money, hours, per cent, degrees and abbreviations.
    """
    reading = _BY_CODE[language]
    for pattern, replacement in _abbreviations(language):
        text = pattern.sub(replacement, text)
    text = _numbers(language).sub(lambda found: f" {_spell(found, reading)} ", text)
    return _signs(language).sub(lambda found: f" {_sign(found[0], reading)} ", text)


def unify_words(text: str, language: str) -> str:
    """Return a normalised text with one form for words that digits cannot distinguish.

    For example, "duas" becomes "dois".
    """
    text = " ".join(_BY_CODE[language].alike.get(word, word) for word in text.split())
    for pattern, replacement in _phrases(language):
        text = pattern.sub(replacement, text)
    return text


def spell_digits(text: str, language: str) -> str:
    """Return the text with every digit as a word: "371" becomes "three seven one"."""
    return regex.sub(r"[0-9]", lambda found: f" {_word(found[0], language)} ", text)


@lru_cache(maxsize=32)
def _numbers(language: str) -> regex.Pattern[str]:
    """Return the pattern of a number with its sign, currency, unit or ordinal sign."""
    reading = _BY_CODE[language]
    point = regex.escape(reading.decimal)
    groups = "|".join(rf"(?:{regex.escape(mark)}[0-9]{{3}}){{1,5}}" for mark in reading.thousands)
    coins = "|".join(_coin(name) for name in sorted(reading.money, key=len, reverse=True)) or "(?!)"
    scales = "|".join(sorted(reading.scales, key=len, reverse=True)) or "(?!)"
    left_alone = f"(?!{reading.left_alone})" if reading.left_alone else ""
    after = [
        r"\s?[°º]\s?(?P<degree>[cf])\b",
        rf"(?P<ordinal>{reading.ordinals.signs if reading.ordinals else '(?!)'})",
        rf"(?P<clock>{reading.clock.signs if reading.clock else '(?!)'})",
        r"\s?(?P<percent>[%‰])",
        rf"\s?(?P<coin>{coins})(?:(?P<cents>[0-9]{{2}})(?![0-9]))?",
        # "12,50 euros" reads like "12,50 €".
        rf"(?<={point}[0-9]{{2}})\s(?P<coin>{'|'.join(_coin_names(reading)) or '(?!)'})\b",
    ]
    return regex.compile(
        rf"(?P<minus>(?<!\S)[-−](?=[^\s\w]?[0-9]))?(?:(?<!\w)(?P<before>{coins})\s?(?=[0-9]))?"
        rf"(?<![0-9])(?:(?P<list>[0-9]++(?:{point}[0-9]++){{2,}}+)"
        rf"|(?>(?P<whole>[1-9][0-9]{{0,2}}(?:{groups})(?![0-9])|[0-9]++)"
        rf"(?:{point}(?P<part>[0-9]++))?){left_alone}"
        rf"(?(before)(?:\ (?P<scale>{scales})\b)?)"
        rf"(?P<after>{'|'.join(after)})?)"
    )


def _coin_names(reading: Reading) -> dict[str, Money]:
    """Return the currencies whose cents are spelled out, by their words."""
    spoken = [money for money in reading.money.values() if money.cents]
    return {name: money for money in spoken for name in money.unit}


def _coin(name: str) -> str:
    return regex.escape(name) + (r"\b" if name[-1].isalpha() else "")


@lru_cache(maxsize=32)
def _abbreviations(language: str) -> Rules:
    # Digits and "_" become words and spaces of their own, but are word characters for \b.
    rules = {
        _WORD_START + pattern.replace(r"\b", _WORD_END): text
        for pattern, text in _BY_CODE[language].abbreviations.items()
    }
    return _compiled(rules)


@lru_cache(maxsize=32)
def _phrases(language: str) -> Rules:
    return _compiled(_BY_CODE[language].alike_phrases)


def _compiled(rules: Mapping[str, str]) -> Rules:
    return tuple((regex.compile(pattern), replacement) for pattern, replacement in rules.items())


@lru_cache(maxsize=32)
def _signs(language: str) -> regex.Pattern[str]:
    """Return the pattern of signs that must be spelled out, so that "20 %" differs from "20"."""
    names = sorted(_BY_CODE[language].money, key=len, reverse=True)
    coins = "|".join(map(_coin, names))
    return regex.compile(rf"(?<!\w)(?:{coins})|[%‰\p{{Sc}}]")


def _spell(found: Match, reading: Reading) -> str:
    if found["list"]:
        parts = found["list"].split(reading.decimal)
        spoken = [_cardinal(part, reading.code) for part in parts]
        return " ".join([*spoken, spell_numbers(found["after"] or "", reading.code)])
    return " ".join(
        filter(None, [reading.minus if found["minus"] else "", _number(found, reading)])
    )


def _number(found: Match, reading: Reading) -> str:
    """Return the words of a number with its signs and units."""
    digits = regex.sub(r"[^0-9]", "", found["whole"])
    coin = found["before"] or found["coin"]
    if coin:
        rest = "" if found["coin"] else found["after"] or ""
        money = reading.money.get(coin) or _coin_names(reading)[coin]
        return _money(found, digits, money, reading) + spell_numbers(rest, reading.code)
    number = _decimal(digits, found["part"], reading.code)
    if found["percent"]:
        one = digits == "1" and not found["part"] and not reading.feminine_nouns
        count = _one_of("", reading) if one else number
        return f"{count} {_sign(found['percent'], reading, digits)}"
    if found["degree"]:
        return f"{number} {_form(digits, reading.degree, reading)} {_SCALES[found['degree']]}"
    if found["part"] is None:
        if found["ordinal"] and reading.ordinals:
            ordinal = _ordinal(found, digits, reading.ordinals, reading.code)
            if ordinal:
                return ordinal
        if found["clock"] and reading.clock:
            hour = _hour(found, digits, reading.clock, reading)
            if hour:
                return hour
        if not found["after"]:
            noun = _NOUN.match(found.string, found.end())
            return _one_of(noun[1], reading) if digits == "1" and noun else number
    return f"{number} {spell_numbers(found['after'] or '', reading.code)}"


def _ordinal(found: Match, digits: str, ordinals: Ordinals, language: str) -> str:
    """Return the words of an ordinal ("primeira" for "1.ª"); empty if it is none."""
    sign = found["ordinal"]
    highest = ordinals.highest
    if sign[0] == "." and sign[1:2].isascii():
        highest = _HIGHEST_BEFORE_LETTER
    if not digits.lstrip("0") or len(digits) > len(str(highest)) or int(digits) > highest:
        return ""
    number = int(digits)
    words = ordinals.irregular.get(number) or _ordinal_word(number, language)
    groups = found.groupdict()
    old, new = ordinals.feminine
    changed = []
    for word in words.split():
        ending = word.removesuffix(old)
        if groups.get("feminine") and ending != word:
            word = ending + new
        elif groups.get("short"):
            word = ending
        changed.append(word + ("s" if groups.get("plural") else ""))
    return " ".join(changed)


def _hour(found: Match, digits: str, clock: Clock, reading: Reading) -> str:
    """Return a time of day in words; empty if it is none."""
    before = found.string[max(found.start() - 1, 0) : found.start()]
    if len(digits) > 2 or int(digits) > 24 or before == ":" or len(found["whole"]) > 2:
        return ""
    hour = clock.one if int(digits) == 1 else _word(str(int(digits)), reading.code)
    unit, minute = _form(digits, clock.whole, reading), int(found["minute"] or 0)
    if not minute:
        return f"{hour} {unit}"
    long = found["long"] if "long" in found.groupdict() else None
    template = clock.long_minutes if long and clock.long_minutes else clock.minutes
    return template.format(hour=hour, unit=unit, minute=_word(str(minute), reading.code))


def _money(found: Match, digits: str, money: Money, reading: Reading) -> str:
    part, scale = found["part"], found["scale"]
    cents = found["cents"] or (part if part and len(part) == 2 and not scale else None)
    if scale:
        of = f" {reading.of}" if reading.of and scale != reading.scales[-1] else ""
        return f"{_decimal(digits, part, reading.code)} {scale}{of} {money.unit[-1]}"
    if part and (not cents or not money.cents):
        return f"{_decimal(digits, part, reading.code)} {money.unit[-1]}"
    unit = _form(digits, money.unit, reading)
    whole = _before_noun(digits, unit, reading)
    if not cents or not int(cents):
        millions = digits.endswith("000000") and len(digits) <= _LONGEST
        return f"{whole}{f' {reading.of}' if millions and reading.of else ''} {unit}"
    cent_unit = _form(cents, money.cent_unit or money.unit, reading)
    spoken = _before_noun(str(int(cents)), cent_unit, reading)
    if not money.cents:
        return f"{whole} {unit} {spoken}"
    if not int(digits):
        return f"{spoken} {cent_unit}"
    return money.cents.format(whole=whole, unit=unit, cents=spoken, cent_unit=cent_unit)


def _before_noun(digits: str, noun: str, reading: Reading) -> str:
    return _one_of(noun, reading) if digits == "1" else _cardinal(digits, reading.code)


def _one_of(noun: str, reading: Reading) -> str:
    """Return the word for "1" before a noun: "uma" casa, "um" livro."""
    if reading.one is None:
        return _word("1", reading.code)
    masculine, feminine = reading.one
    if not reading.feminine_nouns or regex.fullmatch(reading.masculine_nouns, noun):
        return masculine
    return feminine if regex.fullmatch(reading.feminine_nouns, noun) else masculine


def _form(digits: str, forms: Forms, reading: Reading) -> str:
    """Return the form of a noun after a number; the last is the usual plural."""
    last, tens = int(digits[-1]), int(digits[-2:])
    one = digits.lstrip("0") == "1"
    if len(forms) < 3:
        return forms[0] if one else forms[-1]
    if reading.plural == "romanian":
        return forms[0] if one else forms[1] if 0 < tens < 20 else forms[2]
    if one or (reading.plural == "slavic" and last == 1 and tens != 11):
        return forms[0]
    return forms[1] if last in {2, 3, 4} and tens not in {12, 13, 14} else forms[2]


def _sign(sign: str, reading: Reading, digits: str = "0") -> str:
    """Return the word of a sign in the form used after a number."""
    if sign == "%":
        return _form(digits, reading.percent, reading)
    if sign == "‰":
        return reading.per_mille
    if sign in reading.money:
        return reading.money[sign].unit[-1]
    return unicodedata.name(sign).removesuffix(" SIGN").lower()


def _decimal(digits: str, part: str | None, language: str) -> str:
    if not part:
        return _cardinal(digits, language)
    if len(digits) + len(part) <= _LONGEST:
        return _word(f"{digits}.{part}", language)
    return f"{_cardinal(digits, language)} {spell_digits(part, language)}"


def _cardinal(digits: str, language: str) -> str:
    if len(digits) > _LONGEST or (digits[0] == "0" and len(digits) > 1):
        return spell_digits(digits, language)
    return _word(digits, language)


@lru_cache(maxsize=4096)
def _word(number: str, language: str) -> str:
    # Not as text: num2words would lose the decimals in Italian.
    return str(num2words(float(number) if "." in number else int(number), lang=language))


@lru_cache(maxsize=4096)
def _ordinal_word(number: int, language: str) -> str:
    return str(num2words(number, lang=language, to="ordinal"))
