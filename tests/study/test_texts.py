"""The study's sentences: the same on every run, and disjoint splits."""

from __future__ import annotations

import pytest

from study.domains import IN_DOMAIN, OUT_OF_DOMAIN
from study.prepare import COUNTS
from study.texts import TOPICS, draw_sentences, split_of


@pytest.mark.parametrize("topic", TOPICS)
def test_training_tuning_and_test_sentences_are_disjoint(topic: str) -> None:
    splits = {split: set(draw_sentences(topic, split, 2 * n)) for split, n in COUNTS.items()}
    assert all(len(splits[split]) == 2 * count for split, count in COUNTS.items())
    assert len(set.union(*splits.values())) == sum(map(len, splits.values()))


def test_sentences_are_drawn_alike_on_every_run() -> None:
    assert draw_sentences("telephone", "test", 3) == draw_sentences("telephone", "test", 9)[:3]
    assert {split_of(text) for text in draw_sentences("news", "dev", 9)} == {"dev"}


def test_every_slot_is_filled_and_every_sentence_begins_with_a_capital() -> None:
    for topic in TOPICS:
        for sentence in draw_sentences(topic, "train", 200):
            assert "{" not in sentence
            assert sentence[0].isupper()


def test_no_topic_accent_or_condition_that_is_unheard_is_trained_on() -> None:
    trained = {(domain.topic, domain.accent) for domain in IN_DOMAIN}
    unheard = {(domain.topic, domain.accent) for domain in OUT_OF_DOMAIN}
    assert {topic for topic, _ in trained}.isdisjoint(topic for topic, _ in unheard)
    assert {accent for _, accent in trained}.isdisjoint(accent for _, accent in unheard)
