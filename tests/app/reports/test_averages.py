from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.evaluation import ErrorCounts
from app.reports.averages import DatasetRate, average


def rate(name: str, group: str, errors: int, words: int, metric: str = "wer") -> DatasetRate:
    counts = ErrorCounts(substitutions=errors, hits=words - errors)
    return DatasetRate(name, group, metric, counts)  # type: ignore[arg-type]


def test_macro_counts_sets_and_micro_counts_words() -> None:
    averages = average([rate("a", "in_domain", 1, 10), rate("b", "in_domain", 45, 90)])
    assert averages["in_domain"] == {
        "macro": pytest.approx(0.3),
        "micro": 0.46,
        "datasets": 2,
        "ci95": None,
        "rtfx": None,
    }


def test_rtfx_is_all_audio_by_all_the_time() -> None:
    fast = replace(rate("a", "in_domain", 1, 10), audio_seconds=100.0, decode_seconds=1.0)
    slow = replace(rate("b", "in_domain", 1, 10), audio_seconds=100.0, decode_seconds=9.0)
    assert average([fast, slow])["in_domain"]["rtfx"] == 20.0


def test_full_is_in_domain_and_out_of_domain_and_all_is_everything() -> None:
    averages = average(
        [
            rate("a", "in_domain", 1, 10),
            rate("b", "out_of_domain", 2, 10),
            rate("c", "english", 6, 10),
        ]
    )
    assert averages["full"]["macro"] == pytest.approx(0.15)
    assert averages["all"]["macro"] == pytest.approx(0.3)
    assert averages["english"]["datasets"] == 1
    assert "multilingual" not in averages


def test_the_papers_groups_are_there_without_datasets() -> None:
    assert average([]) == {
        group: {"macro": None, "micro": None, "datasets": 0, "ci95": None, "rtfx": None}
        for group in ("in_domain", "out_of_domain", "full", "all")
    }


def test_words_are_never_pooled_with_characters() -> None:
    averages = average([rate("a", "other", 1, 10), rate("b", "other", 30, 100, "cer")])
    assert averages["other"] == {
        "macro": pytest.approx(0.2),
        "micro": None,
        "datasets": 2,
        "ci95": None,
        "rtfx": None,
        "micro_by_metric": {"wer": 0.1, "cer": 0.3},
    }


def test_one_result_a_name_counts_the_last() -> None:
    averages = average([rate("a", "in_domain", 9, 10), rate("a", "in_domain", 1, 10)])
    assert averages["in_domain"]["macro"] == averages["in_domain"]["micro"] == 0.1
    assert averages["in_domain"]["datasets"] == 1


def test_a_set_without_reference_words_has_no_rate_but_its_insertions_count() -> None:
    silent = DatasetRate("silence", "in_domain", "wer", ErrorCounts(insertions=5))
    averages = average([silent, rate("a", "in_domain", 1, 10)])
    assert (averages["in_domain"]["macro"], averages["in_domain"]["micro"]) == (0.1, 0.6)
    assert averages["in_domain"]["datasets"] == 1


def test_the_interval_of_a_macro_average_is_of_the_mean_of_the_replicates() -> None:
    counts = ErrorCounts(substitutions=1, hits=9)
    rates = [
        DatasetRate("a", "in_domain", "wer", counts, np.linspace(0.1, 0.3, 1000), "speaker"),
        DatasetRate("b", "out_of_domain", "wer", counts, np.linspace(0.5, 0.3, 1000), "session"),
    ]
    averages = average(rates)
    assert averages["in_domain"]["ci95"] == {
        "low": pytest.approx(0.105),
        "high": pytest.approx(0.295),
        "method": "bootstrap",
        "replicates": 1000,
        "unit": "speaker",
        "seed": 0,
    }
    full = averages["full"]["ci95"]
    assert (full["low"], full["high"], full["unit"]) == (*[pytest.approx(0.3)] * 2, "mixed")
    unknown = DatasetRate("c", "in_domain", "wer", counts)
    assert average([*rates, unknown])["in_domain"]["ci95"] is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), min_size=1, max_size=8))
def test_micro_lies_between_the_lowest_and_the_highest_rate(sizes: list[tuple[int, int]]) -> None:
    rates = [
        rate(str(index), "in_domain", min(errors, words), words)
        for index, (errors, words) in enumerate(sizes)
    ]
    known = [one.counts.rate or 0.0 for one in rates]
    for value in (average(rates)["full"][kind] for kind in ("macro", "micro")):
        assert min(known) - 1e-12 <= value <= max(known) + 1e-12
