"""Evaluates a checkpoint in this process, without the service: `afluente evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any

from app.contract.errors import InvalidRequestError, Problem
from app.contract.evaluation import EvaluatedDataset, EvaluationSpec
from app.contract.settings import Settings
from app.reports.wer import build_wer
from app.services.preparation import source_policy
from app.sources.architectures.registry import refusals, undecodable
from app.sources.dataset_checks import check_audio, check_languages, unknown_language
from app.sources.datasets import read_dataset
from app.sources.fetch import fetch
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from app.sources.uris import file_uri
from worker.evaluation.cache import InMemoryTranscriptCache
from worker.evaluation.families import read_facts
from worker.evaluation.runner import evaluate


def evaluate_checkpoint(
    checkpoint: Path,
    spec: EvaluationSpec,
    settings: Settings,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Return a checkpoint's error rates, in the format of `GET /merges/{id}/wer`.

    The datasets' URIs may be paths. `progress` gets the utterances done, their total and
    the dataset's name. Raises AfluenteError: InvalidRequestError for a model that has no decoder.
    """
    policy = source_policy(settings, None, any_path=True)
    resolved = resolve(file_uri(checkpoint), policy)
    if resolved.adapter:
        message = (
            f"{checkpoint} is a LoRA adapter; merge it into the checkpoint that it was trained on "
            "first (afluente merge, method soup), and evaluate the result."
        )
        raise InvalidRequestError.of([Problem(message, "checkpoint")])
    if resolved.prefix:
        message = (
            f'{checkpoint}: all tensors are named with the prefix "{resolved.prefix}", with which '
            "they cannot be loaded. Merge it alone first (afluente merge, method soup), and "
            "evaluate the result."
        )
        raise InvalidRequestError.of([Problem(message, "checkpoint")])
    if reason := undecodable(resolved.summary()):
        raise InvalidRequestError.of([Problem(reason, "checkpoint")])
    if problems := refusals(resolved.summary(), spec):
        raise InvalidRequestError.of(problems)
    local = fetch(resolved, policy)
    # As in the service, libraries see only the known fields of JSON files.
    with local.opened() as folder:
        results = list(_evaluate(folder, local.sha256, spec, settings, policy, progress))
    status = (
        "partial" if any(item.result.status != "succeeded" for item in results) else "succeeded"
    )
    return build_wer(checkpoint.name, status, results, {})


def _evaluate(
    folder: Path,
    key: str,
    spec: EvaluationSpec,
    settings: Settings,
    policy: SourcePolicy,
    progress: Callable[[int, int, str], None],
) -> Iterator[EvaluatedDataset]:
    cache = InMemoryTranscriptCache()
    known = _known_languages(folder, spec)
    for dataset in spec.datasets:
        name = dataset.name

        def report(done: int, total: int, name: str = name) -> None:
            progress(done, total, f"utterances of {name}")

        manifest = read_dataset(dataset.uri, policy)
        check_audio(manifest, dataset.uri)
        if known and not dataset.language:
            check_languages(manifest, dataset.uri, known)
        result = evaluate(
            folder,
            key,
            manifest,
            spec.decoding_of(dataset),
            cache,
            progress=report,
            device=None if settings.device == "auto" else settings.device,
        )
        yield EvaluatedDataset(
            name=name,
            group=dataset.group,
            normalizer=spec.normalizer_of(dataset),
            result=result,
        )


def _known_languages(checkpoint: Path, spec: EvaluationSpec) -> Set[str]:
    """Return the languages of a multilingual checkpoint, else {}; check those of `spec`."""
    known = frozenset(read_facts(checkpoint).languages)
    for code in (spec.language, *(dataset.language for dataset in spec.datasets)):
        if code and known and (reason := unknown_language(code, known)):
            raise InvalidRequestError.of([Problem(reason, "language")])
    return known
