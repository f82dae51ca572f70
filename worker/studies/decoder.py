"""Decodes a study's pieces: checkpoints from their files, trials merged into memory.

A worker keeps one for as long as it works on a study: the sources are fetched, the manifests read
and the model loaded once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from threading import Event
from typing import Any

import torch
from sqlalchemy import Engine

from app.contract.errors import SourceChangedError
from app.contract.evaluation import (
    DatasetResult,
    DatasetSpec,
    DecodingOptions,
    EvaluatedDataset,
    Measurement,
)
from app.contract.recipe import Recipe
from app.contract.settings import Settings
from app.contract.spaces import Study
from app.services.preparation import Prepared, prepare, replan, source_policy
from app.sources.datasets import read_dataset
from app.sources.fetch import LocalCheckpoint
from app.sources.manifests import Manifest
from app.sources.policy import SourcePolicy
from app.storage.transcripts import StoredTranscripts
from worker.calibration.gather import Calibration
from worker.evaluation.decoder import Decoder
from worker.evaluation.families import load
from worker.evaluation.runner import SoundCache, default_dtype, evaluate
from worker.merging.engine.job import Observer
from worker.merging.engine.run import run_in_memory
from worker.merging.local import fetch_all, make_job
from worker.merging.memory import available_bytes
from worker.studies.racing import order, rungs, share
from worker.systems import Checkpoints, System

# Norms and spectra of the experts, which all trials share, are kept on disk up to this size.
_REDUCTIONS_BYTES = 8 * 2**30
# Merged tensors may take this part of the available memory, and so may features.
_SHARE_OF_MEMORY = 6


@dataclass(frozen=True)
class _Merged:
    """A trial's tensors by name, and their digest."""

    weights: dict[str, torch.Tensor]
    digest: str

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())


@dataclass
class StudyDecoder:
    """What a worker needs of a study; `sources` are its row's, with digests once they are known."""

    settings: Settings
    engine: Engine
    study: Study
    sources: dict[str, Any]
    device: str
    stopping: Event
    loaded: str | None = None
    """The system that was decoded last: going on with it needs no merge."""
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _merged: OrderedDict[str, _Merged] = field(default_factory=OrderedDict)
    _decoders: dict[DecodingOptions, Decoder] = field(default_factory=dict)
    _loaded: dict[DecodingOptions, str] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def should_stop(self) -> bool:
        """Return whether the worker was told to stop."""
        return self.stopping.is_set()

    @property
    def development(self) -> Measurement:
        """The measurement on the development sets."""
        assert self.study.request.development is not None
        return self.study.request.development

    @cached_property
    def policy(self) -> SourcePolicy:
        """The limits on sources."""
        return source_policy(self.settings, self.engine)

    @cached_property
    def prepared(self) -> Prepared:
        """The checked sources, planned for some trial."""
        base = [self.sources["base"]] if self.sources["base"] else []
        pinned = [one["resolved"] for one in (*base, *self.sources["checkpoints"])]
        return prepare(self.study.example, self.policy, pinned=pinned)

    @cached_property
    def locals(self) -> list[LocalCheckpoint]:
        """The base, if there is one, and the experts, on this machine."""
        return fetch_all(self.prepared, self.policy, should_stop=self.should_stop)

    @cached_property
    def calibration(self) -> Calibration | None:
        """The calibration sets, if the study has any, and what was gathered on them."""
        spec = self.study.request.calibration
        if spec is None:
            return None
        return Calibration(
            spec, self.prepared, self.locals, self.settings, self.policy, self.should_stop
        )

    def manifest(self, dataset: DatasetSpec) -> Manifest:
        """Return a development set's manifest."""
        if dataset.name not in self._manifests:
            param = f"dataset {dataset.name}"
            manifest = read_dataset(
                dataset.uri, self.policy, param=param, should_stop=self.should_stop
            )
            digest = self.sources.get("manifests", {}).get(dataset.name)
            if digest not in {None, manifest.manifest_sha256}:
                raise SourceChangedError(
                    f"{dataset.uri}: the manifest changed since the study began; submit it again."
                )
            self._manifests[dataset.name] = manifest
        return self._manifests[dataset.name]

    def part(self, dataset: DatasetSpec, rung: int | None) -> Manifest:
        """Return what a rung adds to the rungs before; all utterances if it is None."""
        manifest = self.manifest(dataset)
        if rung is None:
            return manifest
        indices = [utterance.index for utterance in manifest.utterances]
        ordered = order(self.study.request.search.seed, dataset.name, indices)
        chosen = set(share(ordered, rungs(self.study), rung))
        utterances = tuple(one for one in manifest.utterances if one.index in chosen)
        return replace(manifest, utterances=utterances)

    def decode_system(self, name: str, dataset: DatasetSpec) -> EvaluatedDataset:
        """Return the result of the base, an expert or a reference on a whole set."""
        complete = self._checkpoints.of(self._systems[name], self.should_stop)
        with complete.opened() as folder:
            result = self._evaluate(folder, complete.key, dataset, None, None)
        return self._named(dataset, result)

    def decode_trial(
        self, system: str, recipe: Recipe, dataset: DatasetSpec, rung: int
    ) -> EvaluatedDataset:
        """Return a trial's result on a rung's share of a set, merging it first if necessary."""
        merged = self._merge(system, recipe)
        self.loaded = system
        # Languages are arguments of every call, so decoders do not differ in them.
        languages = {"language": None, "default_language": None}
        options = self.development.decoding_of(dataset).model_copy(update=languages)
        key = hashlib.sha256(f"{self._reference_key} {merged.digest}".encode()).hexdigest()

        def decoder() -> Decoder:
            return self._decoder(options, system, merged)

        result = self._evaluate(self._reference_folder, key, dataset, rung, decoder)
        return self._named(dataset, result)

    def close(self) -> None:
        """Release the reference's files."""
        self._stack.close()

    @cached_property
    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.settings, self.policy)

    @cached_property
    def _systems(self) -> dict[str, System]:
        sources = self.sources
        reference = (sources["base"] or sources["checkpoints"][0])["resolved"]
        found = [System("base", sources["base"]["resolved"])] if sources["base"] else []
        named = (*sources["checkpoints"], *sources["references"])
        found += [
            System(one["name"], one["resolved"], None, reference, one.get("form") == "difference")
            for one in named
        ]
        return {system.name: system for system in found}

    @cached_property
    def _reference_folder(self) -> Path:
        return self._stack.enter_context(self.locals[0].opened())

    @cached_property
    def _reference_key(self) -> str:
        """The digest of what decides transcripts besides the tensors."""
        files = self.locals[0].file_sha256
        read = (".json", ".model")
        kept = sorted((name, sha) for name, sha in files.items() if name.endswith(read))
        return hashlib.sha256(str(kept).encode()).hexdigest()

    @cached_property
    def _room(self) -> int:
        """How many bytes merged tensors may take; at least one trial's are kept."""
        return available_bytes() // _SHARE_OF_MEMORY

    @cached_property
    def _sounds(self) -> SoundCache:
        return SoundCache(available_bytes() // _SHARE_OF_MEMORY)

    def _merge(self, system: str, recipe: Recipe) -> _Merged:
        """Return a trial's tensors; those of the last trials are kept, as far as memory allows."""
        if system not in self._merged:
            planned = replan(self.prepared, recipe)
            gathered = self.calibration.gather(recipe) if self.calibration else None
            job = make_job(planned, self.locals, Path("trial"), self.settings, statistics=gathered)
            job = replace(job, store_bytes=max(job.store_bytes, _REDUCTIONS_BYTES))
            weights: dict[str, torch.Tensor] = {}
            if self._merged:
                newest = next(reversed(self._merged.values()))
                if (len(self._merged) + 1) * newest.size_bytes > self._room:
                    # Its memory is used again.
                    weights = self._merged.popitem(last=False)[1].weights
            digest = run_in_memory(job, weights, Observer(stopping=self.stopping))
            self._merged[system] = _Merged(weights, digest)
        self._merged.move_to_end(system)
        return self._merged[system]

    def _decoder(self, options: DecodingOptions, system: str, merged: _Merged) -> Decoder:
        if options not in self._decoders:
            dtype = options.dtype or default_dtype(self.device)
            decoder = load(self._reference_folder, self.device, dtype, options)
            self._decoders[options] = decoder
        if self._loaded.get(options) != system:
            self._decoders[options].assign(merged.weights)
            self._loaded[options] = system
        return self._decoders[options]

    def _evaluate(
        self,
        folder: Path,
        key: str,
        dataset: DatasetSpec,
        rung: int | None,
        decoder: Callable[[], Decoder] | None,
    ) -> DatasetResult:
        return evaluate(
            folder,
            key,
            self.part(dataset, rung),
            self.development.decoding_of(dataset),
            StoredTranscripts(self.engine),
            should_stop=self.should_stop,
            device=self.device,
            roots=self.policy.file_roots,
            decoder=decoder,
            sounds=self._sounds,
        )

    def _named(self, dataset: DatasetSpec, result: DatasetResult) -> EvaluatedDataset:
        normalizer = self.development.normalizer_of(dataset)
        return EvaluatedDataset(
            name=dataset.name, group=dataset.group, normalizer=normalizer, result=result
        )
