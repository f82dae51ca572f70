from __future__ import annotations

import random

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.evaluation import ErrorCounts
from app.reports.alignments import align_characters, align_words, count_characters, count_errors
from app.reports.normalizers import find_normalizer
from app.reports.scoring import (
    compression_ratio,
    metric_for,
    score,
    sentence_error_rate,
    total,
)

WORDS = {
    "portuguese": [*"aoéà", "deputado", "não", "está", "água", "três", "votação", "mês"],
    "english": ["the", "a", "quick", "fox", "isn't", "over", "lazy", "dog", "there", "their"],
    "hindi": ["नमस्ते", "दुनिया", "यह", "एक", "परीक्षा", "है", "मैं", "हिन्दी", "बोलता", "हूँ"],
    "chinese": list("今天天气很好我们去公园散步吧"),
}
PAIRS = st.lists(st.tuples(st.text("ab ", max_size=12), st.text("ab ", max_size=12)), min_size=1)


def count_word_errors(references: list[str], hypotheses: list[str]) -> list[ErrorCounts]:
    return [count_errors(alignment) for alignment in align_words(references, hypotheses)]


def count_character_errors(references: list[str], hypotheses: list[str]) -> list[ErrorCounts]:
    aligned = [count_errors(alignment) for alignment in align_characters(references, hypotheses)]
    assert aligned == list(map(count_characters, references, hypotheses))
    return aligned


def test_alignments_are_jiwers() -> None:
    references, hypotheses = random_pairs(WORDS["portuguese"], 100)
    for align, process in (
        (align_words, jiwer.process_words),
        (align_characters, jiwer.process_characters),
    ):
        theirs = process(references, hypotheses).alignments
        for alignment, chunks in zip(align(references, hypotheses), theirs, strict=True):
            assert [chunk._asdict() for chunk in alignment] == [vars(chunk) for chunk in chunks]


def naive(reference: list[str], hypothesis: list[str]) -> int:
    """Return the edit distance by the textbook's recurrence."""
    row = list(range(len(hypothesis) + 1))
    for i, expected in enumerate(reference, start=1):
        diagonal, row[0] = row[0], i
        for j, heard in enumerate(hypothesis, start=1):
            cost = min(row[j] + 1, row[j - 1] + 1, diagonal + (expected != heard))
            diagonal, row[j] = row[j], cost
    return row[-1]


def random_pairs(words: list[str], count: int) -> tuple[list[str], list[str]]:
    draw = random.Random(7)
    references, hypotheses = [], []
    for _ in range(count):
        reference = draw.choices(words, k=draw.randint(1, 12))
        hypothesis = [draw.choice(words) if draw.random() < 0.3 else word for word in reference]
        hypothesis = [word for word in hypothesis if draw.random() > 0.1]
        references.append(" ".join(reference))
        hypotheses.append(" ".join(hypothesis))
    return references, hypotheses


@pytest.mark.parametrize("language", WORDS)
def test_counts_equal_jiwers(language: str) -> None:
    references, hypotheses = random_pairs(WORDS[language], 250)
    for count, process, rate in (
        (count_word_errors, jiwer.process_words, "wer"),
        (count_character_errors, jiwer.process_characters, "cer"),
    ):
        expected = process(references, hypotheses)
        counts = total(count(references, hypotheses))
        assert counts == ErrorCounts(
            substitutions=expected.substitutions,
            deletions=expected.deletions,
            insertions=expected.insertions,
            hits=expected.hits,
        )
        assert counts.rate == pytest.approx(getattr(expected, rate), abs=0)


@given(PAIRS)
def test_errors_are_the_edit_distance(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (
        [" ".join(text.split()) for text in texts] for texts in zip(*pairs, strict=True)
    )
    for reference, hypothesis, counts in zip(
        references, hypotheses, count_word_errors(references, hypotheses), strict=True
    ):
        assert counts.errors == naive(reference.split(), hypothesis.split())
        assert counts.reference_units == len(reference.split())
    for reference, hypothesis, counts in zip(
        references, hypotheses, count_character_errors(references, hypotheses), strict=True
    ):
        assert counts.errors == naive(list(reference), list(hypothesis))
        assert counts.reference_units == len(reference)


def test_an_empty_reference_counts_its_insertions(make_dataset) -> None:
    utterances = make_dataset("set", ("", "two words"), ("one", "one"), ("", "")).result.utterances
    scores = score(utterances, find_normalizer("basic"))
    counts = total(one.words for one in scores)
    assert (counts.insertions, counts.reference_units, counts.rate) == (2, 1, 2.0)
    assert sentence_error_rate(scores, "wer") == pytest.approx(1 / 3)


def test_without_any_reference_word_there_is_no_rate() -> None:
    assert total(count_word_errors(["", ""], ["heard", ""])).rate is None
    assert total([]).rate is None
    assert count_word_errors([], []) == count_character_errors([], []) == []


def test_languages_without_spaces_are_scored_by_character(make_dataset) -> None:
    assert [metric_for(language) for language in ("zh", "th", "yue", "pt", "ko", None)] == [
        "cer", "cer", "cer", "wer", "wer", "wer",
    ]  # fmt: skip
    utterances = make_dataset("set", ("今天 天气", "今天天汽")).result.utterances
    (one,) = score(utterances, find_normalizer("basic"), metric="cer")
    assert (one.characters.substitutions, one.characters.hits) == (1, 3)


def test_a_transcript_that_repeats_itself_compresses_well() -> None:
    assert compression_ratio("obrigado " * 30) > 2.4 > compression_ratio("bom dia a todos")
    assert compression_ratio("") == 0
