"""Divides an evaluation into parts (one system on one dataset each), and decodes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from sqlalchemy import Engine

from app.contract.errors import SourceChangedError, SourceError
from app.contract.evaluation import DatasetSpec, EvaluatedDataset, EvaluationSpec
from app.contract.identifiers import merge_in, merge_uri
from app.contract.settings import Settings
from app.services.preparation import source_policy
from app.services.presentation import is_adapter
from app.sources.datasets import read_dataset
from app.sources.manifests import Manifest
from app.sources.policy import SourcePolicy
from app.storage import evaluations, merges
from app.storage.leases import LeaseLostError
from app.storage.parts import Part, PlannedPart
from app.storage.transcripts import StoredTranscripts
from worker.evaluation.disjoint import refuse_shared
from worker.evaluation.overlap import overlaps
from worker.evaluation.runner import evaluate
from worker.merging.local import choose_device
from worker.systems import Checkpoints, System


@dataclass
class PartDecoder:
    """Divides an evaluation and decodes its parts; reads each manifest and checkpoint once."""

    settings: Settings
    engine: Engine
    evaluation_id: str
    spec: EvaluationSpec
    systems: dict[str, System]
    heard: Mapping[str, str] = field(default_factory=dict)
    _manifests: dict[str, Manifest] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, engine: Engine, evaluation_id: str) -> PartDecoder:
        """Return the decoder for an evaluation; LeaseLostError if it was deleted."""
        row = evaluations.get(engine, evaluation_id)
        merge = merges.get(engine, row["merge_id"]) if row else None
        if row is None or merge is None:
            raise LeaseLostError(evaluation_id)
        spec = EvaluationSpec.model_validate(row["spec"])
        systems = {system.name: system for system in _systems(spec, merge)}
        calibration = merge["recipe"].get("calibration") or {"datasets": ()}
        heard = {one["name"]: one["uri"] for one in calibration["datasets"]}
        return cls(settings, engine, evaluation_id, spec, systems, heard)

    @cached_property
    def policy(self) -> SourcePolicy:
        """The limits on sources."""
        return source_policy(self.settings, self.engine)

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.settings, self.policy)

    def divide(self, should_stop: Callable[[], bool] = lambda: False) -> list[PlannedPart]:
        """Return the evaluation's parts, system by system; reads every manifest.

        Datasets of the hub are downloaded for this, until `should_stop` returns true.
        InvalidManifestError if the merge was calibrated on one of their recordings.
        """
        sets = self.spec.datasets
        datasets = [(dataset, self._manifest(dataset, should_stop)) for dataset in sets]
        self._refuse_heard(should_stop)
        shared = overlaps([manifest for _, manifest in datasets])
        return [
            PlannedPart(
                system=system.name,
                dataset=dataset.name,
                manifest_sha256=manifest.manifest_sha256,
                lane=_lane(system, first),
                utterances=len(manifest.utterances),
            )
            for system in self.systems.values()
            for (dataset, manifest), first in zip(datasets, shared, strict=True)
        ]

    def decode(
        self, part: Part, progress: Callable[[int, int], None], should_stop: Callable[[], bool]
    ) -> EvaluatedDataset:
        """Return the result of the part's system on its dataset.

        `progress` gets the number of utterances done and in total. Raises the errors of `evaluate`
        and `fetch`, and SourceChangedError if the manifest changed since the evaluation began.
        """
        dataset = next(one for one in self.spec.datasets if one.name == part.dataset)
        manifest = self._manifest(dataset, should_stop)
        if manifest.manifest_sha256 != part.manifest_sha256:
            raise SourceChangedError(
                f"{dataset.uri}: the manifest changed since the evaluation began; evaluate again."
            )
        complete = self._checkpoints.of(self.systems[part.system], should_stop)
        with complete.opened() as folder:
            result = evaluate(
                folder,
                complete.key,
                manifest,
                self.spec.decoding_of(dataset),
                StoredTranscripts(self.engine),
                progress=progress,
                should_stop=should_stop,
                device=choose_device(self.settings.device),
                roots=self.policy.file_roots,
            )
        return EvaluatedDataset(
            name=dataset.name,
            group=dataset.group,
            normalizer=self.spec.normalizer_of(dataset),
            result=result,
        )

    def _refuse_heard(self, should_stop: Callable[[], bool]) -> None:
        """Refuse what the merge was calibrated on, in any format, as far as that is still there."""
        heard = {}
        for name, uri in self.heard.items():
            with suppress(SourceError):
                heard[name] = read_dataset(uri, self.policy, param=name, should_stop=should_stop)
        roots = self.policy.file_roots
        refuse_shared(heard, self._manifests, roots, called="Calibration", param="datasets")

    def _manifest(self, dataset: DatasetSpec, should_stop: Callable[[], bool]) -> Manifest:
        if dataset.name not in self._manifests:
            param = f"dataset {dataset.name}"
            self._manifests[dataset.name] = read_dataset(
                dataset.uri, self.policy, param=param, should_stop=should_stop
            )
        return self._manifests[dataset.name]


def device_type_of(settings: Settings) -> str:
    """Return the type of the device for decoding with these settings."""
    return torch.device(choose_device(settings.device)).type


def _systems(spec: EvaluationSpec, merge: Any) -> Iterator[System]:
    sources = merge["sources"]
    reference = (sources["base"] or sources["checkpoints"][0])["resolved"]
    # An adapter is decoded on the base.
    base = reference if is_adapter(merge) else None
    yield System("merge", merge_uri(merge["id"]), None, base)
    for other in spec.compare_with:
        if other == "base" and sources["base"]:
            yield System("base", sources["base"]["resolved"], sources["base"]["sha256"])
        elif other == "checkpoints":
            for source in sources["checkpoints"]:
                form = source.get("form") == "difference"
                yield System(source["name"], source["resolved"], source["sha256"], reference, form)
        elif merge_id := merge_in(other):
            yield System(merge_id, other)
    for named in spec.references:
        yield System(named.name, named.uri, None, reference)


def _lane(system: System, first_overlapping: int) -> str:
    """Return a key that is equal for parts that may decode the same utterances alike."""
    text = f"{system.sha256 or system.uri} {first_overlapping}"
    return hashlib.sha256(text.encode()).hexdigest()
