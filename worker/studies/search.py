"""Chooses the points that a study tries, with Optuna's samplers.

A sampler's state is what it was asked and told. It is not stored: a worker that takes over a study
repeats the conversation from the trials' rows, so that the same seed, rows and version of Optuna
give the same next trial.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from app.contract.spaces import DIGITS, Dimension, Study

optuna.logging.set_verbosity(optuna.logging.WARNING)

_CANDIDATE = "candidate"
# How often a sampler may choose points that were tried before it counts as out of ideas.
_PATIENCE = 20
# Fewer trials say nothing about which parameter matters.
_LEAST_TRIALS = 8


@dataclass(frozen=True)
class Tried:
    """A trial that is over: its batch, its point, and its scores on the objectives.

    `scores` is None if it failed; `violations` are above 0 for constraints that it does not meet.
    """

    batch: int
    candidate: int
    values: Mapping[str, Any]
    scores: tuple[float, ...] | None
    violations: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choice:
    """A point to try: a candidate's index, and a value for each of its dimensions."""

    candidate: int
    values: Mapping[str, Any]

    @property
    def key(self) -> tuple[object, ...]:
        """What is equal for equal points."""
        return (self.candidate, *sorted(self.values.items()))


class Search:
    """Chooses a study's points, a batch at a time."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._is_grid = study.request.search.strategy == "grid"
        self._searches = not self._is_grid and any(space.dimensions for space in study.spaces)
        self._conversation = _Conversation(study) if self._searches else None
        self._told = 0

    def choose(self, tried: Sequence[Tried], count: int) -> list[Choice]:
        """Return the next `count` points, which no trial had; fewer if the search is exhausted.

        `tried` are all trials so far, in order. Candidates without anything to search come first.
        """
        seen = {Choice(one.candidate, one.values).key for one in tried}
        points = _grid(self._study, single=not self._is_grid)
        chosen = list(islice((one for one in points if one.key not in seen), count))
        if self._conversation is None:
            return chosen
        searched = [one for one in tried if self._study.spaces[one.candidate].dimensions]
        for _, batch in groupby(searched[self._told :], key=lambda one: one.batch):
            self._conversation.repeat(list(batch))
        self._told = len(searched)
        return chosen + self._conversation.ask(count - len(chosen))


def importance(study: Study, tried: Sequence[Tried]) -> dict[str, dict[str, float]]:
    """Return for each method with several parameters how much each explains, summing up to 1.

    By PED-ANOVA (Watanabe et al. 2023) on the first objective, over the trials of a candidate.
    """
    found = {}
    for index, space in enumerate(study.spaces):
        if len(space.dimensions) < 2:
            continue
        trials = [
            create_trial(
                params=dict(one.values),
                distributions={d.name: _distribution(d) for d in space.dimensions},
                value=one.scores[0],
            )
            for one in tried
            if one.candidate == index and one.scores is not None
        ]
        if len(trials) < _LEAST_TRIALS:
            continue
        past = optuna.create_study()
        past.add_trials(trials)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(past, evaluator=evaluator)
        name = f"{space.candidate.method}"
        if name in found:
            name = f"{name} (candidate {index})"
        found[name] = {parameter: round(share, 4) for parameter, share in shares.items()}
    return found


def _grid(study: Study, *, single: bool) -> Iterator[Choice]:
    """Yield the points of all candidates; `single`: only of those without dimensions."""
    for index, space in enumerate(study.spaces):
        if not (single and space.dimensions):
            for values in space.grid():
                yield Choice(index, values)


class _Conversation:
    """What a sampler was asked and told so far."""

    def __init__(self, study: Study) -> None:
        self._spaces = {n: space for n, space in enumerate(study.spaces) if space.dimensions}
        self._seed = study.request.search.seed
        self._seen: set[tuple[object, ...]] = set()
        self._asked: list[tuple[optuna.Trial, Choice]] = []
        self._limited = study.request.search.strategy != "cma_es"
        directions = [StudyDirection.MINIMIZE] * max(1, len(study.measures))
        self._optuna = optuna.create_study(directions=directions, sampler=_sampler(study))
        if len(self._spaces) > 1:
            # Every candidate is tried once before the sampler chooses among them.
            for index in self._spaces:
                self._optuna.enqueue_trial({_CANDIDATE: index})

    def ask(self, count: int) -> list[Choice]:
        """Return up to `count` new points, whose scores are told next."""
        self._asked = self._new(count)
        return [choice for _, choice in self._asked]

    def _new(self, count: int) -> list[tuple[optuna.Trial, Choice]]:
        """Return up to `count` new points; fewer only if there are no more."""
        found: list[tuple[optuna.Trial, Choice]] = []
        repeated = 0
        while len(found) < count and repeated < 2 * _PATIENCE:
            if repeated >= _PATIENCE:
                # Where all is discrete, a sampler may insist on what was tried.
                if (left := self._untried()) is None:
                    break
                self._optuna.enqueue_trial(left)
            trial = self._optuna.ask()
            choice = self._choice(trial)
            if choice.key in self._seen:
                repeated += 1
                self._optuna.tell(trial, state=TrialState.FAIL)
                continue
            repeated = 0
            self._seen.add(choice.key)
            found.append((trial, choice))
        return found

    def _untried(self) -> dict[str, Any] | None:
        """Return the parameters of a point that was not tried, or None if all were.

        Those that are missing are left to the sampler: they are of a range.
        """
        for index, space in self._spaces.items():
            of_candidate = {_CANDIDATE: index} if len(self._spaces) > 1 else {}
            if any(not dimension.steps for dimension in space.dimensions):
                return of_candidate
            for values in space.grid():
                if Choice(index, values).key not in self._seen:
                    named = {f"{index}.{name}": value for name, value in values.items()}
                    return of_candidate | named
        return None

    def repeat(self, batch: Sequence[Tried]) -> None:
        """Tell a batch's scores, as it was asked for, or asking for it again.

        The rows count if the answer differs.
        """
        asked, self._asked = self._asked or self._new(len(batch)), []
        for position, one in enumerate(batch):
            trial, choice = asked[position] if position < len(asked) else (None, None)
            mine = Choice(one.candidate, one.values)
            if trial is not None and choice == mine:
                self._tell(trial, one)
                continue
            # Chosen by another version of Optuna.
            if trial is not None:
                self._optuna.tell(trial, state=TrialState.FAIL)
            self._seen.add(mine.key)
            if one.scores is not None:
                self._optuna.add_trial(self._frozen(one))

    def _tell(self, trial: optuna.Trial, one: Tried) -> None:
        if one.scores is None:
            self._optuna.tell(trial, state=TrialState.FAIL)
            return
        for name, violation in self._constraints(one).items():
            trial.set_constraint(name, violation)
        self._optuna.tell(trial, list(one.scores))

    def _choice(self, trial: optuna.Trial) -> Choice:
        (index, *others) = self._spaces
        if others:
            index = trial.suggest_categorical(_CANDIDATE, list(self._spaces))
        dimensions = self._spaces[index].dimensions
        return Choice(index, {one.name: _suggested(trial, index, one) for one in dimensions})

    def _frozen(self, one: Tried) -> FrozenTrial:
        params: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        if len(self._spaces) > 1:
            params[_CANDIDATE] = one.candidate
            distributions[_CANDIDATE] = CategoricalDistribution(list(self._spaces))
        for dimension in self._spaces[one.candidate].dimensions:
            name = f"{one.candidate}.{dimension.name}"
            params[name] = one.values[dimension.name]
            distributions[name] = _distribution(dimension)
        return create_trial(
            params=params,
            distributions=distributions,
            values=list(one.scores or ()),
            constraints=self._constraints(one),
        )

    def _constraints(self, one: Tried) -> dict[str, float]:
        if not self._limited:
            return {}
        return {f"constraint {number}": value for number, value in enumerate(one.violations)}


def _sampler(study: Study) -> BaseSampler:
    search = study.request.search
    if search.strategy == "random":
        return RandomSampler(seed=search.seed)
    if search.strategy == "cma_es":
        return CmaEsSampler(seed=search.seed, warn_independent_sampling=False)
    if search.strategy == "nsga2":
        # Its default population of 50 would be most of a usual budget.
        population = max(search.batch, min(50, study.trials // 4), 2)
        return NSGAIISampler(seed=search.seed, population_size=population)
    with warnings.catch_warnings():
        # Groups are how TPE handles each candidate's own parameters; they are called experimental.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=search.seed, multivariate=True, group=True)


def _suggested(trial: optuna.Trial, candidate: int, dimension: Dimension) -> Any:
    name, wide = f"{candidate}.{dimension.name}", dimension.range
    if wide is None:
        return trial.suggest_categorical(name, dimension.choices)
    if dimension.integer:
        step = int(wide.step or 1)
        return trial.suggest_int(name, int(wide.low), int(wide.high), step=step, log=wide.log)
    value = trial.suggest_float(name, wide.low, wide.high, step=wide.step, log=wide.log)
    return value if wide.step is None else round(value, DIGITS)


def _distribution(dimension: Dimension) -> BaseDistribution:
    wide = dimension.range
    if wide is None:
        return CategoricalDistribution(dimension.choices)
    if dimension.integer:
        step = int(wide.step or 1)
        return IntDistribution(int(wide.low), int(wide.high), wide.log, step)
    return FloatDistribution(wide.low, wide.high, wide.log, wide.step)
