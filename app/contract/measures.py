"""What a study minimises or limits: the rate of a set, or an average over a group's sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from app.contract.evaluation import DatasetSpec, Group
from app.contract.problems import did_you_mean

_GROUPS: Mapping[str, frozenset[str]] = {
    **{group: frozenset({group}) for group in get_args(Group)},
    "full": frozenset({"in_domain", "out_of_domain"}),
    "all": frozenset(get_args(Group)),
}


@dataclass(frozen=True)
class Measure:
    """A rate over some sets: `macro` counts each set once, `micro` each word once."""

    name: str
    sets: tuple[str, ...]
    average: Literal["macro", "micro"]

    def weights(self, lengths: Mapping[str, int]) -> dict[str, float]:
        """Return what an error in each set adds to the rate, for sets of so many words.

        Sets without words are left out. Empty if no set has any.
        """
        counted = {name: lengths[name] for name in self.sets if lengths.get(name)}
        if self.average == "micro" and counted:
            return dict.fromkeys(counted, 1 / sum(counted.values()))
        return {name: 1 / (len(counted) * words) for name, words in counted.items()}

    def rate(self, errors: Mapping[str, int], lengths: Mapping[str, int]) -> float | None:
        """Return the rate, a fraction; None if no set has any words."""
        weights = self.weights(lengths)
        return sum(errors[name] * weights[name] for name in weights) if weights else None


def parse_measure(text: str, datasets: Sequence[DatasetSpec]) -> Measure:
    """Return the measure that `in_domain.macro`, `english` (macro) or a set's name means.

    ValueError if it names neither a group with a set nor a set.
    """
    names = [dataset.name for dataset in datasets]
    if text in names:
        return Measure(text, (text,), "micro")
    group, _, average = text.partition(".")
    members = tuple(one.name for one in datasets if one.group in _GROUPS.get(group, ()))
    if members and average in {"", "macro", "micro"}:
        return Measure(text, members, "micro" if average == "micro" else "macro")
    if group in _GROUPS and average in {"", "macro", "micro"}:
        raise ValueError(f'No development set has the group "{group}"')
    known = [f"{name}.macro" for name, groups in _GROUPS.items() if _any(datasets, groups)]
    known += names
    raise ValueError(
        f'"{text}" is no average and no development set.{did_you_mean(text, known)} '
        f"Known: {', '.join(known)}"
    )


def _any(datasets: Sequence[DatasetSpec], groups: frozenset[str]) -> bool:
    return any(dataset.group in groups for dataset in datasets)
