"""`english` is OpenAI's and `open_asr` the Open ASR Leaderboard's, rule for rule."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from app.reports.english import openai_english
from app.reports.normalizers import find_normalizer

SPELLING = files("app.reports") / "tables" / "english_spelling.json"
# transformers' port differs from openai/whisper by nothing but its types.
PORT = EnglishTextNormalizer(json.loads(SPELLING.read_text("utf-8")))
MINE = openai_english()
TOKENS = """
    zero oh o one two six nine ten eleven nineteen ones sixes first second third fifth twelfth
    zeroth twenty ninety twenties thirtieth hundred thousand million decillion hundreds millionth
    minus plus positive pound dollars euros cents per cent percent and double triple point half a
    colour grey travelled archaeology mum won't can't it's dog's y'all i'd they've gone been got 's
    'd 't mr mrs. dr st gonna wanna cause kinda sorta dunno hmm uh um mm ( ) [ ] < > () [x] (y) ' .
    ... , - – % $5 €2.50 £3 ¢7 20% 3.5 1,000 007 0 1 12 1s 2nd 1960s $0.07 1.2.3 5g g b c x é ß ½ ٣
"""
WORDS = [*TOKENS.split(), "and a half", " ", "  '", "\n"]


def test_the_spelling_table_is_openais() -> None:
    digest = hashlib.sha256(SPELLING.read_bytes()).hexdigest()
    assert digest == "6607f948be9824d2e1b2fa2223cd94c06c45afa4e05ea0e3d5e1f2bdffde2465"


@settings(max_examples=200)
@given(st.lists(st.sampled_from(WORDS) | st.text(max_size=4), max_size=9), st.sampled_from(" -"))
def test_english_is_openais(words: list[str], separator: str) -> None:
    text = separator.join(words)
    assert MINE(text).split() == PORT(text).split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("But for a good cause", "but for a good cause"),
        ("That was kinda odd", "that was kinda odd"),
        ("I dunno, sorta", "i dunno sorta"),
        ("I won’t, it’s", "i will not it is"),
        ("\ufb01ne caf\u0065\u0301", "fine cafe"),
    ],
)
def test_english_adds_nothing_but_the_unifying_of_typography(text: str, expected: str) -> None:
    assert find_normalizer("english")(text) == expected


@pytest.mark.parametrize("digits", [300, 301, 4300, 4301, 9000])
@pytest.mark.parametrize("name", ["english", "english_spelled", "open_asr", "portuguese"])
def test_a_number_of_thousands_of_digits_is_a_word(name: str, digits: int) -> None:
    normalizer = find_normalizer(name)  # type: ignore[arg-type]
    assert normalizer(f"{'1' * digits} million people").endswith(("people", "million people"))
    assert normalizer(" ".join(["one"] * digits) + " decillion")


# What the leaderboard's own code (d1e99b2) makes of them.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's the dog's tail", "it is the dog s tail"),
        ("uh-huh, um, right", "right"),
        ("the B B C and 5 G", "the bbc and 5g"),
        ("a i m", "aim"),
        ("I'll e-mail you at 3 p.m.", "i will email you at 3 pm"),
        ("How ever all right", "however alright"),
        ("wi-fi", "wifi"),
        ("$2 and 7 cents", "$2.07"),
        ("one hundred and twenty three", "123"),
        ("Allan colour ok kay", "allen color okay okay"),
        ("cancellation archaeology", "cancelation archeology"),
        ("[noise] hello (laughs)", "hello"),
        ("et cetera etcetera", "etc etc"),
        ("twenty twenty-one", "2021"),
        ("T-shirt x ray", "tshirt xray"),
        ("two and a half percent", "2.5%"),
        ("Mr. Smith's been here", "mister smith has been here"),
        ("4,300 people", "4300 people"),
    ],
)
def test_open_asr_is_the_leaderboards(text: str, expected: str) -> None:
    assert find_normalizer("open_asr")(text) == expected
    assert find_normalizer("open_asr", "en")(text) == expected


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("pt", "Há 10 000 pessoas, 20%", "há dez mil pessoas vinte"),
        ("pt", "um guarda-chuva", "um guarda chuva"),
        ("de", "21 Häuser [Lärm]", "einundzwanzig häuser"),
        ("fr", "l'été (rires)", "l été"),
        ("xx", "12 x", "12 x"),
        ("pt", "9" * 5000, "9" * 5000),
    ],
)
def test_open_asr_in_other_languages_is_the_multilingual_tracks(
    language: str, text: str, expected: str
) -> None:
    normalizer = find_normalizer("open_asr", language)
    assert normalizer(text) == expected
    assert language in normalizer.version
