from __future__ import annotations

import time
import unicodedata
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.contract.evaluation import NormalizerName
from app.reports.normalizers import find_normalizer
from app.reports.numerals import spell_digits, spell_numbers
from app.reports.readings import READINGS

NAMES = get_args(NormalizerName)


@pytest.mark.parametrize("name", NAMES)
def test_every_normaliser_has_a_name_and_a_version(name: NormalizerName) -> None:
    record = find_normalizer(name).as_record()
    assert record["name"] == name
    assert record["version"][0].isdigit()


def test_an_unknown_normaliser_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match='unknown normaliser "fancy"; known: none, basic'):
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
        ("sete e trinta", "7h30"),
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
@given(
    text=st.text(max_size=40)
    | st.text("0123456789,.:h %€$°ºª-aos\u0301", max_size=20)
    | st.text("sdrmlevog0_. ", max_size=8)
)
@example(text="sr0")
@example(text="dr_2")
def test_any_text_can_be_normalised_into_words_with_single_spaces(
    name: NormalizerName, text: str
) -> None:
    normalised = find_normalizer(name)(text)
    assert normalised == " ".join(normalised.split())
    if name in {"basic", *READINGS}:
        assert find_normalizer(name)(normalised) == normalised


@given(st.integers(0, 10**30))
def test_spelling_leaves_no_digit(number: int) -> None:
    for language in ("pt", "en", "it"):
        assert not any(letter.isdigit() for letter in spell_numbers(f"a{number},5", language))
        assert not any(letter.isdigit() for letter in spell_digits(str(number), language))


def test_decimals_are_kept_in_every_language() -> None:
    assert spell_numbers("3,5", "it").strip() == "tre virgola cinque"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "none"])
@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("don’t", "don't"),
        ("don\u02bct", "don't"),
        ("don\u00b4t", "don't"),
        ("\u0130stambul", "istambul"),
        ("I\u0307stambul", "istambul"),
        ("corac\u0327a\u0303o", "coração"),
        ("o\ufb01cina e\ufb03caz", "oficina eficaz".replace("ef", "eff")),
        ("\uff26\uff35\uff2c\uff2c", "full"),
        ("vin\u00adte\u200b", "vinte"),
        ("dez\u00a0mil\u2009e\u202fdois", "dez mil e dois"),
    ],
)
def test_typography_alone_makes_no_difference(name: NormalizerName, text: str, plain: str) -> None:
    normalizer = find_normalizer(name)
    assert normalizer(text) == normalizer(plain)


def test_none_changes_nothing_but_spaces() -> None:
    assert find_normalizer("none")("Don’t  \ufb01x") == "Don’t \ufb01x"


# What took quadratic time, or might.
HOSTILE = (
    "[", "<", "(", "[(", "9" * 4301 + " ", "1.", "111 111 ", "1.000.", "€", " ", "  '",
    "\u0301\u0327", "º", "-1", "and  ", "oh ", "million ", "\u200b", "\n", "x" * 4000 + " ",
)  # fmt: skip


@pytest.mark.parametrize("name", ["basic", "english_spelled", "open_asr", "portuguese"])
def test_time_grows_with_the_text_and_no_faster(name: NormalizerName) -> None:
    function = find_normalizer(name).function
    for unit in HOSTILE:
        started = time.process_time()
        # It was over ten seconds.
        function(unit * (20_000 // len(unit)))
        assert time.process_time() - started < 8, unit[:10]


@pytest.mark.parametrize("name", NAMES)
def test_any_text_can_be_normalised(name: NormalizerName) -> None:
    for unit in (
        *HOSTILE,
        "1,2",
        "12,50 €",
        "%",
        "1º",
        "10:3",
        "\ufdfa",
        "½",
        "٣",
        "i\u0307",
        "n. ",
    ):
        find_normalizer(name).function(unit * (500 // len(unit) + 1))
