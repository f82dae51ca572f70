from __future__ import annotations

import pytest

from app.reports.breakdown import by_duration, by_speaker
from app.reports.scored import score_dataset
from app.reports.scoring import total

PAIRS = (("um dois", "um"), ("três", "três"), ("quatro cinco seis", "x"), ("sete", "oito"))
SECONDS = {0: 1.99, 1: 2.0, 2: 20.0, 3: 7.5}


def test_durations_are_in_order_and_each_utterance_is_in_one(make_dataset) -> None:
    scored = score_dataset(make_dataset("set", *PAIRS, seconds=SECONDS))
    parts = by_duration(scored, None)
    titles = [part.title for part in parts]
    assert titles == ["under 2 s", "2 to 5 s", "5 to 10 s", "20 s and more"]
    assert [part.merge.errors for part in parts] == [1, 0, 1, 3]
    assert total(part.merge for part in parts) == total(one.words for one in scored.scores)
    assert {part.delta for part in parts} == {None}


def test_speakers_with_the_highest_rate_come_first(make_dataset) -> None:
    speakers = {0: "ana", 1: "rui", 2: "ana", 3: "eva"}
    scored = score_dataset(make_dataset("set", *PAIRS, speakers=speakers))
    parts = by_speaker(scored, None)
    assert [(part.title, part.utterances) for part in parts] == [("eva", 1), ("ana", 2), ("rui", 1)]
    assert parts[1].merge.rate == pytest.approx(4 / 5)


def test_there_is_no_breakdown_of_a_single_or_unnamed_speaker(make_dataset) -> None:
    for speakers in ({}, {0: "ana", 1: "ana"}):
        scored = score_dataset(make_dataset("set", *PAIRS, speakers=speakers))
        assert by_speaker(scored, None) == []


def test_merge_and_base_are_compared_over_what_both_decoded(make_dataset) -> None:
    mine = score_dataset(make_dataset("set", *PAIRS))
    base = score_dataset(make_dataset("set", *((text, text) for text, _ in PAIRS), skip=(2, 3)))
    [part] = by_duration(mine, base)
    assert (part.utterances, part.merge.errors, part.base.errors) == (2, 1, 0)
    assert part.delta == pytest.approx(1 / 3)
