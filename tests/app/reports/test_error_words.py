from __future__ import annotations

from dataclasses import astuple

from hypothesis import given
from hypothesis import strategies as st

from app.contract.evaluation import ErrorCounts
from app.reports.error_words import error_words
from app.reports.scored import score_dataset
from app.reports.scoring import total

WORDS = st.lists(st.sampled_from(["um", "dois", "três", "quatro"]), max_size=6).map(" ".join)


def test_the_most_frequent_errors_come_first_beside_the_bases(make_dataset) -> None:
    pairs = [("seis um", "três um")] * 2 + [("dois", "doze"), ("o rio", "rio"), ("mar", "mar e")]
    mine = score_dataset(make_dataset("set", *pairs))
    base = score_dataset(make_dataset("set", *[("seis um", "três um")] * 3, ("o rio", "o rio")))
    found = error_words(mine, base)
    assert list(map(astuple, found.substituted)) == [("seis", "três", 2, 3), ("dois", "doze", 1, 0)]
    assert list(map(astuple, found.deleted)) == [("o", "", 1, 0)]
    assert list(map(astuple, found.inserted)) == [("", "e", 1, 0)]
    assert error_words(mine, None).deleted[0].base is None


def test_characters_are_counted_where_words_have_no_spaces(make_dataset) -> None:
    mine = score_dataset(make_dataset("set", ("今天天气", "今天天汽"), language="zh"))
    assert list(map(astuple, error_words(mine, None).substituted)) == [("气", "汽", 1, None)]


@given(st.lists(st.tuples(WORDS, WORDS), max_size=5))
def test_the_counts_add_up_to_the_datasets(make_dataset, pairs: list[tuple[str, str]]) -> None:
    # Four words have at most 12 confusions; those after the tenth are not shown.
    scored = score_dataset(make_dataset("set", *pairs))
    found = error_words(scored, None)
    counts = total(score.words for score in scored.scores)
    shown = ErrorCounts(
        *(sum(word.count for word in some) for some in (
            found.substituted, found.deleted, found.inserted
        ))
    )  # fmt: skip
    assert (shown.deletions, shown.insertions) == (counts.deletions, counts.insertions)
    if len(found.substituted) < 10:
        assert shown.substitutions == counts.substitutions
