from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.languages import WHISPER_LANGUAGES, language_code


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ("nb nob nb-NO no nor", "no"),
        ("nn nno", "nn"),
        ("fil tgl tl fil_PH", "tl"),
        ("cmn zho chi zh-Hant cmn_hans_cn", "zh"),
        ("yue yue-HK", "yue"),
        ("jv jav jw", "jw"),
        ("por pt-BR PT_pt", "pt"),
        ("deu ger de", "de"),
        ("eng en-US", "en"),
        ("iw heb he", "he"),
        ("in ind", "id"),
        ("mo mol ron rum", "ro"),
        ("sr-Latn srp sh hbs", "sr"),
        ("arb ar-EG ara", "ar"),
        ("fas pes per fa", "fa"),
        ("swh swa sw", "sw"),
        ("zsm msa may ms", "ms"),
        ("ekk est et", "et"),
        ("haw", "haw"),
        ("mya bur my", "my"),
        ("ell gre el", "el"),
    ],
)
def test_iso_639_codes_and_regions_become_whispers_codes(tags: str, code: str) -> None:
    assert {language_code(tag) for tag in tags.split()} == {code}


@pytest.mark.parametrize("code", ["gsw", "xx", "und", "mul", "ckb", "zxx"])
def test_unknown_language_codes_are_unchanged(code: str) -> None:
    assert language_code(code) == code
    assert code not in WHISPER_LANGUAGES


@given(st.text(max_size=8) | st.from_regex(r"[a-z]{2,3}", fullmatch=True))
def test_converting_a_code_twice_changes_nothing(text: str) -> None:
    try:
        code = language_code(text)
    except ValueError:
        return
    assert language_code(code) == code


def test_the_languages_are_whispers() -> None:
    whisper = pytest.importorskip("transformers.models.whisper.tokenization_whisper")
    assert set(whisper.LANGUAGES) == WHISPER_LANGUAGES
    for name, code in whisper.TO_LANGUAGE_CODE.items():
        assert language_code(code) == code, name
