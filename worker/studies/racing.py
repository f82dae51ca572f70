"""Scores trials, and decides after each rung which of them go on.

Decisions depend only on what was decoded, never on which worker did it or when.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.contract.evaluation import EvaluatedDataset
from app.contract.measures import Measure
from app.contract.spaces import Study
from app.contract.studies import RUNGS
from app.reports.alignments import Metric
from app.reports.scored import score_dataset

SIGNIFICANT = 0.05
# Fewer utterances with a difference say nothing.
_LEAST_DIFFERENT = 5
# Rates are sums of fractions; a limit that is met exactly is met.
_ROUNDING = 1e-9


@dataclass
class Scores:
    """A system's errors and reference lengths, by set and utterance, in words or characters."""

    errors: dict[str, dict[int, int]] = field(default_factory=dict)
    lengths: dict[str, dict[int, int]] = field(default_factory=dict)
    metrics: dict[str, Metric] = field(default_factory=dict)

    def add(self, evaluated: EvaluatedDataset) -> None:
        """Add the utterances of a result."""
        scored = score_dataset(evaluated)
        errors = self.errors.setdefault(evaluated.name, {})
        lengths = self.lengths.setdefault(evaluated.name, {})
        self.metrics[evaluated.name] = scored.metric
        counted = zip(scored.scores, scored.errors, scored.lengths, strict=True)
        for one, wrong, length in counted:
            errors[one.index], lengths[one.index] = int(wrong), int(length)

    def rate(self, measure: Measure) -> float | None:
        """Return the rate over what was decoded so far."""
        return measure.rate(_sums(self.errors, measure), _sums(self.lengths, measure))

    def rate_on(self, other: Scores, measure: Measure) -> float | None:
        """Return the rate over the utterances that the other system has decoded too."""
        return measure.rate(*_shared(self, other, measure))

    def counts(self) -> dict[str, dict[str, int]]:
        """Return utterances, errors and words of each set, as a trial's row has them."""
        return {
            name: {
                "utterances": len(errors),
                "errors": sum(errors.values()),
                "words": sum(self.lengths[name].values()),
            }
            for name, errors in self.errors.items()
        }


@dataclass(frozen=True)
class Verdict:
    """What a rung says about a trial: it goes on, unless there is a reason to stop."""

    objectives: tuple[float, ...] | None
    violations: tuple[float, ...]
    reason: str | None = None

    @property
    def feasible(self) -> bool:
        """Whether all constraints are met so far."""
        return all(violation <= _ROUNDING for violation in self.violations)


def order(seed: int, dataset: str, indices: Iterable[int]) -> list[int]:
    """Return the order in which a study decodes the utterances of a set."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"{seed}\n{dataset}\n{index}".encode()).digest()

    return sorted(indices, key=place)


def rungs(study: Study) -> tuple[float, ...]:
    """Return the shares of the utterances after which trials are compared."""
    return RUNGS if study.request.search.racing else (1.0,)


def share(ordered: Sequence[int], shares: Sequence[float], rung: int) -> list[int]:
    """Return the utterances that a rung adds to those of the rungs before."""
    edges = [0, *(math.ceil(len(ordered) * one) for one in shares)]
    return list(ordered[edges[rung] : edges[rung + 1]])


def compared(mine: Scores, other: Scores, measure: Measure) -> tuple[float, float]:
    """Return (difference of the rates, p) over the utterances that both have decoded.

    A matched-pairs test on the differences of each utterance's errors, as MAPSSWE's (Gillick & Cox
    1989) with an utterance for a segment, stratified by set: the difference of the averages is a
    weighted sum of differences, and so is its variance. In the test an utterance counts at most as
    many errors as it has words: one endless repetition has so much variance that nothing would ever
    be significant. p is two-sided, and 1 if too few utterances differ, or if the rates differ only
    by repetitions.
    """
    errors, lengths = _shared(mine, other, measure)
    theirs, _ = _shared(other, mine, measure)
    delta = tested = variance = 0.0
    different = 0
    for name, weight in measure.weights(lengths).items():
        gaps = list(_capped_gaps(mine, other, name))
        different += sum(gap != 0 for gap in gaps)
        mean = sum(gaps) / len(gaps)
        delta += weight * (errors[name] - theirs[name])
        tested += weight * sum(gaps)
        if len(gaps) > 1:
            spread = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
            variance += weight**2 * len(gaps) * spread
    if different < _LEAST_DIFFERENT or variance <= 0 or delta * tested <= 0:
        return delta, 1.0
    return delta, math.erfc(abs(tested) / math.sqrt(2 * variance))


def _capped_gaps(mine: Scores, other: Scores, name: str) -> Iterator[int]:
    """Yield the differences of a set's capped errors, of the utterances that both have decoded."""
    theirs = other.errors[name]
    for index, wrong in mine.errors[name].items():
        if index in theirs:
            most = max(mine.lengths[name][index], 1)
            yield min(wrong, most) - min(theirs[index], most)


def judge(
    study: Study,
    running: Mapping[int, Scores],
    complete: Mapping[int, Scores],
    systems: Mapping[str, Scores],
    share_done: float,
) -> dict[int, Verdict]:
    """Return the verdict on each running trial after a rung that ends at this share.

    `complete` are the trials that are over with all constraints met, `systems` the base, experts
    and references, which have decoded everything.
    """
    verdicts = {
        number: Verdict(
            objectives_of(study, scores),
            violations_of(study, scores, systems),
            _impossible(study, scores, systems),
        )
        for number, scores in running.items()
    }
    if share_done == 1.0:
        return verdicts
    rivals = dict(complete)
    if not study.limits:
        # With constraints, what leads now may miss one in the end: only what has met them counts.
        rivals |= {number: running[number] for number, one in verdicts.items() if not one.reason}
    for number, verdict in verdicts.items():
        if verdict.reason is None and study.request.search.racing:
            reason = _beaten(study, number, running[number], rivals)
            verdicts[number] = Verdict(verdict.objectives, verdict.violations, reason)
    return verdicts


def objectives_of(study: Study, scores: Scores) -> tuple[float, ...] | None:
    """Return the objectives over what was decoded; None if a set has no words."""
    found = [scores.rate(measure) for measure in study.measures]
    rates = tuple(rate for rate in found if rate is not None)
    return rates if len(rates) == len(found) else None


def expected(
    study: Study, scores: Scores, systems: Mapping[str, Scores]
) -> tuple[float, ...] | None:
    """Return the objectives to expect over all utterances; None if a set has no words.

    A ratio estimate: what was decoded, times how much harder all utterances are than these for the
    base, the experts and the references. Without it, a trial that was stopped after easy utterances
    would look better to a sampler than the trial that beat it.
    """
    found = objectives_of(study, scores)
    if found is None:
        return None
    factors = []
    for measure in study.measures:
        whole = sum(one.rate(measure) or 0.0 for one in systems.values())
        here = sum(one.rate_on(scores, measure) or 0.0 for one in systems.values())
        factors.append(whole / here if here else 1.0)
    return tuple(rate * factor for rate, factor in zip(found, factors, strict=True))


def pooled_units(study: Study, scores: Scores) -> str | None:
    """Return the first objective or limit whose micro average has words and characters, or None."""
    for measure in (*study.measures, *(limited for _, limited in study.limits)):
        units = {scores.metrics[name] for name in measure.sets if name in scores.metrics}
        if measure.average == "micro" and len(units) > 1:
            return measure.name
    return None


def violations_of(study: Study, scores: Scores, systems: Mapping[str, Scores]) -> tuple[float, ...]:
    """Return by how much each constraint is exceeded, over what was decoded; 0 or less: met."""
    found = []
    for constraint, measure in study.limits:
        rate = scores.rate(measure)
        excess = [-math.inf]
        if rate is not None and constraint.max_wer is not None:
            excess.append(rate - constraint.max_wer)
        if rate is not None and constraint.max_regression is not None:
            other = systems[constraint.against].rate_on(scores, measure)
            excess.append(rate - (other or 0.0) - constraint.max_regression)
        found.append(max(excess) if rate is not None else 0.0)
    return tuple(found)


def better(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether the first dominates the second: nowhere worse, somewhere better."""
    pairs = list(zip(first, second, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def front(objectives: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the trials that no other dominates, the best on the first objective first."""
    kept = [
        number
        for number, mine in objectives.items()
        if not any(better(other, mine) for other in objectives.values())
    ]
    return sorted(kept, key=lambda number: (tuple(objectives[number]), number))


def _impossible(study: Study, scores: Scores, systems: Mapping[str, Scores]) -> str | None:
    """Return why a constraint cannot be met any more: errors so far exceed what all may have."""
    for constraint, measure in study.limits:
        whole = systems[study.systems[0]]
        weights = measure.weights(_sums(whole.lengths, measure))
        errors = _sums(scores.errors, measure)
        least = sum(errors.get(name, 0) * weight for name, weight in weights.items())
        limits = [constraint.max_wer] if constraint.max_wer is not None else []
        if constraint.max_regression is not None:
            rate = systems[constraint.against].rate(measure) or 0.0
            limits.append(rate + constraint.max_regression)
        if least > min(limits) + _ROUNDING:
            return (
                f"cannot meet the constraint on {constraint.set}: at least {100 * least:.1f} % of "
                f"the words are wrong already, {100 * min(limits):.1f} % are allowed"
            )
    return None


def _beaten(study: Study, number: int, scores: Scores, rivals: Mapping[int, Scores]) -> str | None:
    """Return which rival is significantly better on every objective, or None.

    Of the rivals only the best so far count, on the utterances that the trial has decoded.
    """
    reached = {
        rival: tuple(other.rate_on(scores, measure) or 0.0 for measure in study.measures)
        for rival, other in rivals.items()
    }
    for rival in front(reached):
        if rival == number:
            continue
        tests = [compared(scores, rivals[rival], measure) for measure in study.measures]
        if all(delta > 0 and p < SIGNIFICANT for delta, p in tests):
            delta, p = tests[0]
            return f"{100 * delta:.1f} points worse than #{rival} (p = {p:.2g})"
    return None


def _sums(counts: Mapping[str, Mapping[int, int]], measure: Measure) -> dict[str, int]:
    return {name: sum(counts[name].values()) for name in measure.sets if name in counts}


def _shared(mine: Scores, other: Scores, measure: Measure) -> tuple[dict[str, int], dict[str, int]]:
    """Return my errors and the lengths, by set, of the utterances that both have decoded."""
    errors, lengths = {}, {}
    for name in measure.sets:
        theirs = other.errors.get(name, {})
        both = [index for index in mine.errors.get(name, {}) if index in theirs]
        errors[name] = sum(mine.errors[name][index] for index in both)
        lengths[name] = sum(mine.lengths[name][index] for index in both)
    return errors, lengths
