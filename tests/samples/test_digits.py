"""The split of the texts: by their hash alone, so no evaluation text is ever trained on."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from samples.digits import LONGEST, SHORTEST, WORDS, draw_distinct_texts, draw_text, is_held_out


@given(seed=st.integers(), held_out=st.booleans())
def test_a_drawn_text_is_on_the_side_asked_for(seed: int, held_out: bool) -> None:
    text = draw_text(random.Random(seed), held_out=held_out)
    assert is_held_out(text) == held_out
    assert SHORTEST <= len(text.split()) <= LONGEST
    assert set(text.split()) <= set(WORDS)


def test_about_a_fifth_of_all_strings_of_three_is_held_out() -> None:
    strings = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS]
    assert 0.15 < sum(map(is_held_out, strings)) / len(strings) < 0.25


def test_distinct_texts_are_distinct_and_the_same_on_every_run() -> None:
    texts = draw_distinct_texts(random.Random("x"), 50)
    assert len(set(texts)) == 50
    assert texts == draw_distinct_texts(random.Random("x"), 50)
