"""Bootstrap confidence intervals of error rates, and the probability of improvement.

Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation",
ICASSP 2004. Utterances of one speaker or session are not independent, so whole speakers (or
sessions) are resampled if the manifest names them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.contract.evaluation import UtteranceResult

REPLICATES = 1000
SEED = 0
_PERCENT = (2.5, 97.5)
# Draws made at once, to bound the memory for large datasets.
_DRAWS = 2_000_000

Unit = Literal["speaker", "session", "utterance"]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """The units that are resampled from a dataset; `members[i]` is the unit of utterance i.

    The dataset's `name` and the seed determine the draws: all systems share a dataset's draws, and
    different datasets have independent ones.
    """

    name: str
    unit: Unit
    members: Counts
    units: int


def sampling(name: str, utterances: Sequence[UtteranceResult]) -> Sampling:
    """Return the units of a dataset: speakers, else sessions, else utterances.

    Speakers or sessions are used if every utterance has one and there are at least two: a single
    speaker says nothing about the variation between speakers.
    """
    by_unit: tuple[tuple[Unit, list[str | None]], ...] = (
        ("speaker", [utterance.speaker for utterance in utterances]),
        ("session", [utterance.session for utterance in utterances]),
    )
    for unit, labels in by_unit:
        if all(labels) and len(set(labels)) > 1:
            numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
            members = np.array([numbers[label] for label in labels])
            return Sampling(name, unit, members, len(numbers))
    return Sampling(name, "utterance", np.arange(len(utterances)), len(utterances))


def resample(sampling: Sampling, values: Counts) -> Counts:
    """Return the column sums of `values` (utterances, columns) in each replicate.

    A replicate draws as many units as there are, with replacement. Shape (REPLICATES, columns).
    """
    totals = np.zeros((sampling.units, values.shape[1]), dtype=np.int64)
    np.add.at(totals, sampling.members, values)
    columns = [np.concatenate(parts) for parts in zip(*_sums(sampling, totals), strict=True)]
    return np.stack(columns, axis=1)


def rates(sampling: Sampling, errors: Counts, lengths: Counts) -> Floats | None:
    """Return the error rate of each replicate; NaN for one without reference words.

    None if there are fewer than two units, or no reference has any words.
    """
    if sampling.units < 2 or not lengths.any():
        return None
    sums = resample(sampling, np.stack([errors, lengths], axis=1))
    return ratio(sums[:, 0], sums[:, 1])


_LEAST_SHARE = 0.95
"""The share of replicates that must have reference words."""


def ratio(errors: Counts, lengths: Counts) -> Floats:
    """Return errors over lengths, NaN where a length is 0."""
    found = np.full(errors.shape, np.nan)
    np.divide(errors, lengths, out=found, where=lengths > 0)
    return found


def interval(replicates: Floats) -> dict[str, float] | None:
    """Return the middle 95 % of replicates as `{"low", "high"}` (the percentile method).

    None if too many replicates have no words: the interval would be too narrow.
    """
    if np.isfinite(replicates).mean() < _LEAST_SHARE:
        return None
    low, high = np.nanpercentile(replicates, _PERCENT)
    return {"low": float(low), "high": float(high)}


def describe(
    replicates: Floats | None, unit: str, units: int | None = None
) -> dict[str, Any] | None:
    """Return the interval and its parameters, as `/wer` shows them."""
    found = None if replicates is None else interval(replicates)
    if found is None:
        return None
    how: dict[str, Any] = {"method": "bootstrap", "replicates": REPLICATES, "unit": unit}
    if units is not None:
        how["units"] = units
    return {**found, **how, "seed": SEED}


def probability_of_improvement(errors: Counts, other_errors: Counts) -> float:
    """Return the fraction of replicates in which the first system has fewer errors.

    This is Bisani & Ney's poi; both systems share the draws. A tie counts half, so that a system
    has 0.5 against itself, and the two values of a pair add up to 1.
    """
    difference = errors - other_errors
    return float(np.mean((difference < 0) + 0.5 * (difference == 0)))


def two_tailed(differences: Floats) -> float:
    """Return how probable a difference as large as this is between equal systems.

    Twice the share of replicates whose difference has the rarer sign, which is small where the
    interval is far from 0. Never 0, since there are finitely many replicates.
    """
    known = differences[np.isfinite(differences)]
    rarer = min((known <= 0).sum(), (known >= 0).sum())
    return min(1.0, 2 * (int(rarer) + 1) / (len(known) + 1))


def _sums(sampling: Sampling, totals: Counts) -> Iterator[list[Counts]]:
    generator = np.random.default_rng([SEED, zlib.crc32(sampling.name.encode())])
    at_once = max(1, _DRAWS // sampling.units)
    for start in range(0, REPLICATES, at_once):
        shape = (min(at_once, REPLICATES - start), sampling.units)
        drawn = generator.integers(0, sampling.units, size=shape)
        yield [column[drawn].sum(axis=1) for column in totals.T]
