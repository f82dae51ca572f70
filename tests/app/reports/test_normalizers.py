from __future__ import annotations

import unicodedata
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.evaluation import NormalizerName
from app.reports.normalizers import find_normalizer
from app.reports.numerals import spell_digits, spell_numbers

NAMES = get_args(NormalizerName)


@pytest.mark.parametrize("name", NAMES)
def test_every_normaliser_has_a_name_and_a_version(name: NormalizerName) -> None:
    record = find_normalizer(name).as_record()
    assert record["name"] == name
    assert record["version"].startswith("1")


def test_an_unknown_normaliser_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match='no normaliser "fancy"; there are none, basic'):
        find_normalizer("fancy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bom dia, Sr. Presidente!", "bom dia sr presidente"),
        ("[risos] Está (pausa) bem", "está bem"),
        ("नमस्ते, दुनिया!", "नमस्ते दुनिया"),
        ("สวัสดีครับ", "สวัสดีครับ"),
        ("Ação", "ação"),
        ("obrigado ❤️ pois", "obrigado pois"),
        ("co\u00adisa\u200b \ufeffcerta", "coisa certa"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("  ", ""),
    ],
)
def test_basic_keeps_combining_marks_and_drops_what_is_no_word(text: str, expected: str) -> None:
    assert find_normalizer("basic")(text) == unicodedata.normalize("NFKC", expected)


@pytest.mark.parametrize(
    "pair",
    [
        ("dezasseis", "16"),
        ("dois sete um", "2, 7, 1."),
        ("vinte e um de março de dois mil e vinte e quatro", "21 de março de 2024"),
        ("mil duzentos e trinta e quatro", "1.234"),
        ("um milhão", "1 000 000".replace(" ", "\u00a0")),
        ("três vírgula cinco", "3,5"),
        ("zero zero sete", "007"),
        ("dois sete um", "2,7,1"),
        ("sete h trinta", "7h30"),
    ],
)
def test_portuguese_words_and_digits_are_the_same(pair: tuple[str, str]) -> None:
    portuguese = find_normalizer("portuguese")
    assert portuguese(pair[0]) == portuguese(pair[1])


def test_the_two_portugueses_count_differently() -> None:
    assert find_normalizer("portuguese")("17") == "dezassete"
    assert find_normalizer("brazilian_portuguese")("17") == "dezessete"


def test_english_is_whispers_own() -> None:
    english = find_normalizer("english")
    assert english("I won't colour it, Mr. Smith.") == "i will not color it mister smith"
    assert english("three seven one") != english("3, 7, 1.")


@pytest.mark.parametrize(
    "pair",
    [
        ("three seven one", "3, 7, 1."),
        ("three hundred and seventy-one", "371"),
        ("twenty first", "21st"),
        ("oh seven", "07"),
    ],
)
def test_english_spelled_makes_digits_and_words_the_same(pair: tuple[str, str]) -> None:
    spelled = find_normalizer("english_spelled")
    assert spelled(pair[0]) == spelled(pair[1])


@pytest.mark.parametrize("name", NAMES)
@given(text=st.text(max_size=40) | st.text("0123456789,. %€-aé\u0301", max_size=20))
def test_any_text_can_be_normalised_into_words_with_single_spaces(
    name: NormalizerName, text: str
) -> None:
    normalised = find_normalizer(name)(text)
    assert normalised == " ".join(normalised.split())
    if name in {"basic", "portuguese"}:
        assert find_normalizer(name)(normalised) == normalised


@given(st.integers(0, 10**30))
def test_spelling_leaves_no_digit(number: int) -> None:
    for language in ("pt", "en", "it"):
        assert not any(letter.isdigit() for letter in spell_numbers(f"a{number},5", language))
        assert not any(letter.isdigit() for letter in spell_digits(str(number), language))


def test_decimals_are_kept_in_every_language() -> None:
    assert spell_numbers("3,5", "it").strip() == "tre virgola cinque"
