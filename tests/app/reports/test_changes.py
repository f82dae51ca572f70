from __future__ import annotations

import pytest

from app.reports.changes import Changes, changes_against
from app.reports.scored import score_dataset

REFERENCES = ("um dois três", "quatro cinco", "seis", "sete oito")


def changed(make_dataset, merge: list[str], base: list[str], **fields: object) -> list[Changes]:
    mine = score_dataset(make_dataset("set", *zip(REFERENCES, merge, strict=True)))
    its = score_dataset(make_dataset("set", *zip(REFERENCES, base, strict=True), **fields))
    return changes_against(mine, {"base": [its]}, [])


def test_what_became_worse_or_better_comes_most_changed_first(make_dataset) -> None:
    [found] = changed(
        make_dataset,
        merge=["um", "quatro", "seis", "nove nove"],
        base=["um dois três", "quatro cinco", "dez onze", "sete nove"],
    )
    assert [(one.utterance.index, one.added) for one in found.worse] == [(0, 2), (1, 1), (3, 1)]
    assert [(one.utterance.index, one.added) for one in found.better] == [(2, -2)]
    assert found.utterances == 4
    [better] = found.better
    assert (better.before.counts.errors, better.after.counts.errors) == (2, 0)
    assert better.after.pieces == ({"type": "equal", "reference": "seis", "hypothesis": "seis"},)


def test_only_utterances_that_both_decoded_have_changed(make_dataset) -> None:
    [found] = changed(make_dataset, ["x"] * 4, list(REFERENCES), skip=(0, 1))
    assert found.utterances == 2
    assert [one.utterance.index for one in found.worse] == [3, 2]


def test_a_system_that_is_not_comparable_has_no_changes(make_dataset) -> None:
    assert changed(make_dataset, list(REFERENCES), ["x"] * 4, num_beams=1) == []


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("street", "street"),
        ("street-test", "street"),
        ("Street noise", "street"),
        ("street-2-dev", "street-2"),
        ("streets", "calls"),  # the lowest rate: no expert is named so
        ("clean", "calls"),
    ],
)
def test_the_expert_is_the_domains_own_or_else_the_best(
    make_dataset, dataset: str, expected: str
) -> None:
    heard = {"base": "um", "street": "um", "street-2": "um", "calls": "um dois", "other": "um dois"}
    systems = {
        name: [score_dataset(make_dataset(dataset, ("um dois", text)))]
        for name, text in heard.items()
    }
    mine = score_dataset(make_dataset(dataset, ("um dois", "um dois")))
    found = changes_against(mine, systems, ["street", "street-2", "calls"])
    assert [one.system for one in found] == ["base", expected]
