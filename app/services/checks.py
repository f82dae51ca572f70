"""Checks a request's sources and datasets, and reports all problems at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from app.contract.calibration import CalibrationSet, CalibrationSpec
from app.contract.errors import (
    AfluenteError,
    InvalidRequestError,
    Problem,
    SourceError,
    SourceNotFoundError,
)
from app.contract.evaluation import DatasetSpec, EvaluationSpec, Measurement, Reference
from app.contract.identifiers import merge_in, merge_uri
from app.contract.recipe import Recipe
from app.contract.requests import RESERVED_NAMES
from app.contract.spaces import Study
from app.services.backend import Backend
from app.services.gates import problems_with_system
from app.services.presentation import architecture_summary, is_adapter
from app.sources.checkpoint import ResolvedCheckpoint
from app.sources.policy import SourcePolicy
from app.storage import merges

if TYPE_CHECKING:
    from app.planning.plan import Plan
    from app.services.preparation import Prepared
    from app.sources.manifests import Manifest


def check_sources(
    backend: Backend,
    recipe: Recipe,
    evaluation: EvaluationSpec | None,
    *,
    pinned: Sequence[str] | None = None,
) -> Prepared:
    """Resolve and check the checkpoints of a recipe and the datasets of its evaluation.

    `pinned` are the URIs that an earlier merge resolved the recipe's URIs to. Raises one
    AfluenteError with all problems.
    """
    from app.services.preparation import prepare

    policy = _policy(backend)
    prepared: list[Prepared] = []
    warnings: list[dict[str, str]] = []
    heard: dict[str, Manifest] = {}
    tested: dict[str, Manifest] = {}
    checks: list[Callable[[], object]] = [
        lambda: prepared.append(prepare(recipe, policy, pinned=pinned))
    ]
    if recipe.calibration is not None:
        checks += _calibration_checks(
            recipe.calibration,
            policy,
            lambda: prepared[0].reference if prepared else None,
            warnings,
            heard,
        )
    if evaluation is not None:

        def decoder() -> None:
            if prepared:
                found = prepared[0].reference
                _check_decoder(found.summary(), "evaluation", evaluation, "evaluation.", found)

        checks.append(decoder)
        checks += _evaluation_checks(
            backend,
            evaluation,
            policy,
            "evaluation.",
            reference=lambda: prepared[0].reference if prepared else None,
            warnings=warnings,
            read=tested,
        )
        checks.append(
            partial(_refuse_shared_audio, "Calibration", heard, tested, policy, "calibration")
        )
        has_base, experts = recipe.base is not None, [one.name for one in recipe.checkpoints]
        checks.append(lambda: _check_names(evaluation, has_base, experts, "evaluation."))
    _run_all(checks)
    return replace(prepared[0], warnings=(*prepared[0].warnings, *warnings))


def check_evaluation(
    backend: Backend, evaluation: EvaluationSpec, merge: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Check the datasets and merges that an evaluation names; return warnings.

    `merge` is the row of the merge to evaluate. Raises like `check_sources`.
    """
    from app.sources.datasets import read_dataset
    from app.sources.resolve import resolve

    policy, sources = _policy(backend), merge["sources"]
    warnings: list[dict[str, str]] = []
    tested: dict[str, Manifest] = {}

    # An adapter is decoded on the base, and says nothing of languages.
    measured = sources["base"]["resolved"] if is_adapter(merge) else merge_uri(merge["id"])

    def artifact() -> ResolvedCheckpoint | None:
        # The worker reports an artifact that cannot be read.
        with suppress(SourceError):
            return resolve(measured, policy)
        return None

    def heard() -> dict[str, Manifest]:
        """Return the merge's calibration sets, as far as they are still there."""
        found = {}
        for one in (merge["recipe"].get("calibration") or {"datasets": ()})["datasets"]:
            with suppress(SourceError):
                found[one["name"]] = read_dataset(one["uri"], policy)
        return found

    checks: list[Callable[[], object]] = [
        lambda: _check_decoder(architecture_summary(merge), None, evaluation, "", artifact()),
        *_evaluation_checks(
            backend, evaluation, policy, "", reference=artifact, warnings=warnings, read=tested
        ),
        lambda: _refuse_shared_audio("Calibration", heard(), tested, policy, "datasets"),
    ]
    has_base, experts = bool(sources["base"]), [one["name"] for one in sources["checkpoints"]]
    checks.append(lambda: _check_names(evaluation, has_base, experts, ""))
    _run_all(checks)
    return warnings


@dataclass(frozen=True)
class PreparedStudy:
    """A study's checked sources and sets.

    `plans` has a plan for each candidate, at some point of its space.
    """

    sources: dict[str, Any]
    plans: tuple[Plan, ...]
    utterances: Mapping[str, int]
    audio_seconds: Mapping[str, float | None]
    warnings: tuple[dict[str, str], ...]


def check_study_sources(backend: Backend, study: Study) -> PreparedStudy:
    """Resolve and check the checkpoints, references and sets of a study.

    Raises one AfluenteError with all problems: also for a recording that is in a development and in
    a test set.
    """
    from app.services.preparation import not_in_memory, prepare, replan
    from app.sources.resolve import resolve

    policy, request = _policy(backend), study.request
    prepared: list[Prepared] = []
    references: list[dict[str, Any]] = []
    warnings: list[dict[str, str]] = []
    manifests: dict[str, dict[str, Manifest]] = {"development": {}, "test": {}, "calibration": {}}

    def reference(index: int, uri: str, name: str) -> None:
        param = f"references[{index}].uri"
        found = resolve(uri, policy, param=param)
        for part, measurement in (("development", request.development), ("test", request.test)):
            if measurement:
                _check_decoder(found.summary(), param, measurement, f"{part}.")
        references.append({"name": name, "uri": uri, "resolved": found.resolved})

    def decoder() -> None:
        for name, measurement in (("development", request.development), ("test", request.test)):
            if prepared and measurement:
                found = prepared[0].reference
                _check_decoder(found.summary(), name, measurement, f"{name}.", found)

    checks: list[Callable[[], object]] = [
        lambda: prepared.append(prepare(study.example, policy)),
        decoder,
    ]
    checks += [
        partial(reference, index, one.uri, one.name) for index, one in enumerate(request.references)
    ]
    for name, measurement in (("development", request.development), ("test", request.test)):
        if measurement is not None:
            checks += _evaluation_checks(
                backend,
                measurement,
                policy,
                f"{name}.",
                reference=lambda: prepared[0].reference if prepared else None,
                warnings=warnings,
                read=manifests[name],
            )
    if request.calibration is not None:
        checks += _calibration_checks(
            request.calibration,
            policy,
            lambda: prepared[0].reference if prepared else None,
            warnings,
            manifests["calibration"],
        )
    for name in ("development", "calibration"):
        tested = manifests["test"]
        checks.append(
            partial(
                _refuse_shared_audio, name.capitalize(), manifests[name], tested, policy, "test"
            )
        )
    if request.gate is not None:
        spec, has_base = request.evaluation(), request.base is not None
        checks.append(lambda: _check_names(spec, has_base, study.experts, ""))
    _run_all(checks)
    found = prepared[0]
    if found.plan.adapter is not None:
        message = "A study measures full weights; ask for an adapter in a merge of its best point."
        raise InvalidRequestError.of([Problem(message, "output.form")])
    if reason := not_in_memory(found.reference, found.growth):
        raise InvalidRequestError.of([Problem(f"{reason}; a study cannot try it.", "checkpoints")])
    recipes = [
        study.parsed(index, {one.name: one.examples[0] for one in space.dimensions}).recipe
        for index, space in enumerate(study.spaces)
    ]
    planned = [replan(found, recipe) for recipe in recipes]
    return PreparedStudy(
        sources={**found.sources(), "references": references},
        plans=tuple(one.plan for one in planned),
        utterances={n: len(m.utterances) for n, m in manifests["development"].items()},
        audio_seconds={n: _seconds(m) for n, m in manifests["development"].items()},
        warnings=(*found.warnings, *warnings),
    )


def _refuse_shared_audio(
    called: str,
    chosen_on: Mapping[str, Manifest],
    tested_on: Mapping[str, Manifest],
    policy: SourcePolicy,
    param: str,
) -> None:
    from app.sources.shared_audio import MOST_SHOWN, shared_recordings

    messages = shared_recordings(chosen_on, tested_on, policy.file_roots)
    if messages:
        raise InvalidRequestError.of(
            [
                Problem(f"{called} and test sets must not share audio: {message}.", param)
                for message in messages[:MOST_SHOWN]
            ]
        )


def _calibration_checks(
    calibration: CalibrationSpec,
    policy: SourcePolicy,
    reference: Callable[[], ResolvedCheckpoint | None],
    warnings: list[dict[str, str]],
    read: dict[str, Manifest],
) -> list[Callable[[], object]]:
    """Return the checks of calibration sets, which add to `warnings` and to `read`.

    A multilingual Whisper is told the language, which the sets or their manifests must name.
    """
    from app.sources.architectures.registry import calibration_obstacle
    from app.sources.completion import undecoded
    from app.sources.dataset_checks import check_audio, unknown_language

    def decoder() -> None:
        found = reference()
        if found and (reason := calibration_obstacle(found.summary()) or undecoded(found)):
            raise InvalidRequestError.of([Problem(reason, "calibration")])

    def dataset(index: int, spec: CalibrationSet) -> None:
        param = f"calibration.datasets[{index}].uri"
        manifest = _read_manifest(spec.uri, policy, param, warnings)
        if manifest is None:
            return
        read[spec.name] = manifest
        with _pointing_at(param):
            check_audio(manifest, spec.uri, policy.file_roots)
        found = reference()
        known = found.languages if found else None
        if not known:
            return
        options = calibration.decoding_of(spec)
        spoken = {options.language_of(utterance) for utterance in manifest.utterances}
        if None in spoken:
            message = (
                f"{spec.name}: some utterances have no language, which the model must be told; "
                "give `language`."
            )
            raise InvalidRequestError.of([Problem(message, f"calibration.datasets[{index}]")])
        reasons = (unknown_language(code, known) for code in sorted(filter(None, spoken)))
        for reason in filter(None, reasons):
            raise InvalidRequestError.of([Problem(reason, f"calibration.datasets[{index}]")])

    return [decoder, *(partial(dataset, *one) for one in enumerate(calibration.datasets))]


def _read_manifest(
    uri: str, policy: SourcePolicy, param: str, warnings: list[dict[str, str]]
) -> Manifest | None:
    """Return a dataset's manifest; None, with a warning, if only workers can read its form."""
    from app.sources.datasets import read_dataset
    from app.sources.manifest_hugging_face import NoArrowError

    try:
        return read_dataset(uri, policy, param=param)
    except NoArrowError as error:
        warnings.append(_unchecked(f"{error.message}; the worker checks the dataset."))
        return None


@contextmanager
def _pointing_at(param: str) -> Iterator[None]:
    """Make the errors of sources point at a field of the request."""
    try:
        yield
    except SourceError as error:
        problems = [Problem(problem.message, param) for problem in error.as_problems()]
        raise type(error)(error.message, param=param, problems=problems) from None


def _seconds(manifest: Manifest) -> float | None:
    """Return the sum of the durations that a manifest states; None if it lacks one."""
    durations = [utterance.duration_seconds for utterance in manifest.utterances]
    return None if None in durations else sum(filter(None, durations))


def named_merges(uris: Iterable[str]) -> dict[str, str]:
    """Return the URIs of merges, by the merge's identifier."""
    return {merge_id: uri for uri in uris if (merge_id := merge_in(uri))}


def refuse_deleted(named: Mapping[str, str], gone: Sequence[str]) -> None:
    """Raise SourceNotFoundError for the merges that a request names and that are `gone`."""
    problems = [
        Problem(f"{named[one]}: The merge {one} was deleted.") for one in gone if one in named
    ]
    if problems:
        raise SourceNotFoundError(problems[0].message, problems=problems)


def _check_decoder(
    architecture: Mapping[str, Any],
    param: str | None,
    asked: Measurement,
    prefix: str,
    checkpoint: ResolvedCheckpoint | None = None,
) -> None:
    """Refuse an evaluation that this architecture, or a complete checkpoint of it, cannot have.

    `param` is the field that asks for it, and `prefix` is before the fields of `asked`.
    """
    from app.sources.architectures.registry import refusals, undecodable
    from app.sources.completion import undecoded

    if reason := undecodable(architecture):
        raise InvalidRequestError.of([Problem(reason, param)])
    problems = [
        Problem(one.message, f"{prefix}{one.param}") for one in refusals(architecture, asked)
    ]
    if checkpoint and (reason := undecoded(checkpoint)):
        problems.append(Problem(reason, param))
    elif (
        checkpoint
        and asked.backend != "default"
        and not problems
        and (reason := checkpoint.architecture.unconvertible(checkpoint))
    ):
        problems.append(Problem(f"{asked.backend}: {reason}.", f"{prefix}backend"))
    if problems:
        raise InvalidRequestError.of(problems)


def _check_names(
    evaluation: EvaluationSpec, has_base: bool, experts: Sequence[str], prefix: str
) -> None:
    """Refuse a gate against an unknown system, and references called as another system is."""
    problems = problems_with_system(evaluation, has_base=has_base, experts=experts, prefix=prefix)
    problems += [
        Problem(
            f'"{one.name}" is the name of the merge, the base or an expert; choose another.',
            f"{prefix}references[{index}].name",
        )
        for index, one in enumerate(evaluation.references)
        if one.name in {*RESERVED_NAMES, *experts}
    ]
    if problems:
        raise InvalidRequestError.of(problems)


def _policy(backend: Backend) -> SourcePolicy:
    # Imported late: the HTTP clients would double the API's start time.
    from app.services.preparation import source_policy

    # Only for the API, where a client waits; workers have no such limit.
    give_up_at = time.monotonic() + backend.settings.source_deadline_seconds
    return replace(source_policy(backend.settings, backend.engine), give_up_at=give_up_at)


def _evaluation_checks(
    backend: Backend,
    evaluation: Measurement,
    policy: SourcePolicy,
    prefix: str,
    *,
    reference: Callable[[], ResolvedCheckpoint | None],
    warnings: list[dict[str, str]],
    read: dict[str, Manifest] | None = None,
) -> list[Callable[[], object]]:
    """Return the checks, to be run in this order; they add to `warnings` and to `read`.

    `reference` returns the checkpoint whose tokenizer all share, or None if it cannot be used.
    """
    from app.sources.dataset_checks import check_audio, check_languages, unknown_language

    checkpoint = cache(reference)

    def known_languages() -> Set[str] | None:
        found = checkpoint()
        return found.languages if found else None

    def language(code: str | None, param: str) -> None:
        known = known_languages()
        if code and known and (reason := unknown_language(code, known)):
            raise InvalidRequestError.of([Problem(reason, param)])

    def dataset(index: int, spec: DatasetSpec) -> None:
        param = f"{prefix}datasets[{index}].uri"
        manifest = _read_manifest(spec.uri, policy, param, warnings)
        if manifest is None:
            return
        with _pointing_at(param):
            if manifest.unread:
                unchecked = (
                    f"{spec.uri}: {manifest.unread:,} utterances were not checked, since it would "
                    "take too long; the worker checks them."
                )
                warnings.append(_unchecked(unchecked))
            if read is not None:
                read[spec.name] = manifest
            unusable = check_audio(manifest, spec.uri, policy.file_roots)
            warnings.extend({"code": "unusable_audio", "message": f"{text}."} for text in unusable)
            known = None if spec.language else known_languages()
            if known:
                check_languages(manifest, spec.uri, known)
            options = evaluation.decoding_of(spec)
            spoken = {options.language_of(utterance) or "en" for utterance in manifest.utterances}
            found = checkpoint()
            others = sorted(spoken - {"en"})
            if found and others and found.architecture.is_english_only(found):
                message = (
                    f"{spec.name}: the language is {', '.join(others)}, but the checkpoint's "
                    "vocabulary is that of Whisper's English-only models."
                )
                warnings.append({"code": "english_only", "message": message})

    def other(index: int, uri: str, merge_id: str) -> None:
        row = merges.get(backend.engine, merge_id)
        if row is None or row["status"] != "succeeded":
            state = f"the merge is {row['status']}" if row else "the merge does not exist"
            param = f"{prefix}compare_with[{index}]"
            message = f"{uri}: {state}; only succeeded merges can be compared with."
            raise InvalidRequestError.of([Problem(message, param)])
        param = f"{prefix}compare_with[{index}]"
        if is_adapter(row):
            message = f"{uri}: the merge is an adapter, which is only measured by itself."
            raise InvalidRequestError.of([Problem(message, param)])
        _check_decoder(architecture_summary(row), param, evaluation, prefix)

    def named(index: int, one: Reference) -> None:
        from app.sources.resolve import resolve

        param = f"{prefix}references[{index}].uri"
        summary = resolve(one.uri, policy, param=param).summary()
        _check_decoder(summary, param, evaluation, prefix)

    checks: list[Callable[[], object]] = []
    checks.append(lambda: language(evaluation.language, f"{prefix}language"))
    for index, spec in enumerate(evaluation.datasets):
        param = f"{prefix}datasets[{index}].language"
        checks.append(partial(language, spec.language, param))
        checks.append(partial(dataset, index, spec))
    if not isinstance(evaluation, EvaluationSpec):
        return checks
    for index, name in enumerate(evaluation.compare_with):
        if merge_id := merge_in(name):
            checks.append(partial(other, index, name, merge_id))
    for index, one in enumerate(evaluation.references):
        checks.append(partial(named, index, one))
    return checks


def _unchecked(message: str) -> dict[str, str]:
    return {"code": "unchecked_dataset", "message": message}


def _run_all(checks: Sequence[Callable[[], object]]) -> None:
    errors: list[AfluenteError] = []
    for check in checks:
        try:
            check()
        except AfluenteError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        # Raise the first error that is not retryable: a retry would not help the others.
        kind = type(next((error for error in errors if not error.retryable), errors[0]))
        problems = [problem for error in errors for problem in error.as_problems()]
        more = f" (and {len(problems) - 1} more, see errors)"
        raise kind(problems[0].message + more, param=problems[0].param, problems=problems)
