"""Gathers what a recipe's methods need of the calibration sets, once for each expert.

What is gathered is kept in a folder under the digest of all that decides it, for later merges.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from app.contract.calibration import CalibrationSpec
from app.contract.catalogue.method import Statistic
from app.contract.errors import (
    InvalidManifestError,
    InvalidRequestError,
    NonFiniteInputError,
    Problem,
    StorageError,
)
from app.contract.evaluation import DecodingOptions
from app.contract.recipe import Recipe
from app.contract.requests import OutputSpec
from app.contract.settings import Settings
from app.services.preparation import Prepared, replan
from app.sources.architectures.registry import calibration_obstacle
from app.sources.datasets import read_dataset
from app.sources.fetch import LocalCheckpoint
from app.sources.manifests import Manifest
from app.sources.policy import SourcePolicy
from worker.calibration.examples import Example, choose_examples, teacher_forced
from worker.calibration.measuring import Measured, measure
from worker.evaluation.whisper.checkpoint import WhisperFacts, read_facts
from worker.evaluation.whisper.decoding import SpeechDecoder
from worker.merging.engine.job import Interrupted, Observer
from worker.merging.engine.run import origin_of, run_in_memory
from worker.merging.engine.statistics import (
    Gathered,
    GatheredStatistics,
    StatisticsFile,
    save_statistics,
)
from worker.merging.engine.store import trim, written_whole
from worker.merging.local import (
    Gather,
    Progress,
    choose_device,
    make_job,
    threads_of,
    working_memory,
)

# Raise this when this package gathers differently.
_RECIPE = 1
_LIBRARIES = ("transformers", "tokenizers", "numpy", "soundfile", "soxr", "av")


def gatherer(settings: Settings) -> Gather:
    """Return what `merge_recipe` and `sweep_recipe` ask."""

    def gather(
        recipes: Sequence[Recipe],
        prepared: Prepared,
        locals_: list[LocalCheckpoint],
        policy: SourcePolicy,
        progress: Progress,
    ) -> tuple[Gathered, list[dict[str, str]]]:
        spec = recipes[0].calibration
        assert spec is not None
        advance = partial(_advance, progress)
        found = Calibration(spec, prepared, locals_, settings, policy, progress=advance)
        return found.gather(*recipes), found.warnings

    return gather


def _advance(progress: Progress, done: int, total: int) -> None:
    progress(done, total, "utterances")


@dataclass
class Calibration:
    """The calibration sets of a merge or a study, and what was gathered on them.

    `progress` is called with utterances done and in all.
    """

    spec: CalibrationSpec
    prepared: Prepared
    locals: Sequence[LocalCheckpoint]
    settings: Settings
    policy: SourcePolicy
    should_stop: Callable[[], bool] = lambda: False
    progress: Callable[[int, int], None] = lambda done, total: None
    warnings: list[dict[str, str]] = field(default_factory=list)
    _gathered: dict[Statistic, GatheredStatistics] = field(default_factory=dict)

    def gather(self, *recipes: Recipe) -> Gathered:
        """Return what the recipes' methods need, of each expert in order.

        InvalidManifestError if a set cannot be used; NonFiniteInputError names an expert whose
        outputs are not finite.
        """
        wanted = sorted(frozenset().union(*(recipe.statistics for recipe in recipes)))
        for kind in wanted:
            if kind not in self._gathered:
                self._gathered[kind] = self._gather(kind)
        return {kind: self._gathered[kind] for kind in wanted}

    @cached_property
    def manifests(self) -> dict[str, Manifest]:
        """The sets by name."""
        return {
            one.name: read_dataset(
                one.uri,
                self.policy,
                param=f"calibration set {one.name}",
                should_stop=self.should_stop,
            )
            for one in self.spec.datasets
        }

    def _check_stop(self) -> None:
        if self.should_stop():
            raise Interrupted

    @cached_property
    def _device(self) -> str:
        return choose_device(self.settings.device)

    @cached_property
    def _facts(self) -> WhisperFacts:
        if reason := calibration_obstacle(self.prepared.reference.summary()):
            raise InvalidRequestError.of([Problem(reason, "calibration")])
        with self.locals[0].opened() as folder:
            return read_facts(folder)

    @cached_property
    def _examples(self) -> dict[str, list[Example]]:
        """The examples of each set."""
        found = {}
        for one in self.spec.datasets:
            manifest = self.manifests[one.name]
            found[one.name], reasons = choose_examples(
                self.spec, one, manifest, self._facts, self.policy.file_roots, self._check_stop
            )
            self._warn_left_out(one.name, reasons)
        return found

    def _warn_left_out(self, name: str, reasons: Sequence[str]) -> None:
        if reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            message = f"The calibration set {name} is used without {reasons[0]}{more}."
            self.warnings.append({"code": "calibration_left_out", "message": message})

    def _gather(self, kind: Statistic) -> GatheredStatistics:
        names = [source.name for source in self.prepared.recipe.checkpoints]
        examples = [
            [example for one in self.spec.of(name) for example in self._examples[one.name]]
            for name in names
        ]
        total, done = sum(map(len, examples)), 0
        files = []
        with ExitStack() as stack:
            decoders: list[SpeechDecoder] = []

            def decoder() -> SpeechDecoder:
                """Return the reference's model, loaded when it is first needed."""
                if not decoders:
                    folder = stack.enter_context(self.locals[0].opened())
                    loaded = SpeechDecoder(folder, self._device, "float32", DecodingOptions())
                    decoders.append(loaded)
                return decoders[0]

            for number, mine in enumerate(examples):
                before = done

                def advance(here: int, before: int = before) -> None:
                    self._check_stop()
                    self.progress(before + here, total)

                files.append(self._of_expert(kind, number, mine, decoder, advance))
                done += len(mine)
                self.progress(done, total)
        trim(self._folder, self.settings.statistics_bytes)
        return GatheredStatistics(files)

    @property
    def _folder(self) -> Path:
        return self.settings.data / "statistics"

    def _of_expert(
        self,
        kind: Statistic,
        number: int,
        examples: Sequence[Example],
        decoder: Callable[[], SpeechDecoder],
        advance: Callable[[int], None],
    ) -> StatisticsFile:
        key = self._key(kind, number, examples)
        path = self._folder / f"{key}.safetensors"
        with suppress(OSError, SafetensorError, KeyError, ValueError):
            found = StatisticsFile(path)
            os.utime(path)
            return found
        measured = self._measure(kind, number, examples, decoder(), int(key[:12], 16), advance)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as unfinished:
                save_statistics(unfinished, measured.tensors, measured.shared)
                # A loss of power must not leave a whole header before zeroes under the final name.
                with unfinished.open("rb") as written:
                    os.fsync(written.fileno())
                return StatisticsFile(unfinished)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path.parent} cannot be written: {error}. Free space there, or point "
                "AFLUENTE_DATA_DIR elsewhere, and retry the merge."
            ) from error

    def _measure(
        self,
        kind: Statistic,
        number: int,
        examples: Sequence[Example],
        decoder: SpeechDecoder,
        seed: int,
        advance: Callable[[int], None],
    ) -> Measured:
        name = self.prepared.recipe.checkpoints[number].name
        decoder.assign(self._weights(number))
        done, too_long = 0, 0

        def prepare(index: int) -> Any:
            nonlocal too_long
            forced = teacher_forced(decoder, examples[index])
            too_long += forced is None
            return forced

        def on_example() -> None:
            nonlocal done
            done += 1
            advance(done)

        on_gpu = torch.device(self._device).type == "cuda"
        measured = measure(
            decoder.model,
            kind,
            prepare,
            len(examples),
            threads=1 if on_gpu else threads_of(self.settings),
            memory_bytes=working_memory(self.settings),
            seed=seed,
            on_example=on_example,
        )
        if not measured.examples:
            raise InvalidManifestError(
                f"{name}: every reference of its calibration sets is too long for the model."
            )
        if too_long:
            self._warn_left_out(name, ["a reference that is too long for the model"] * too_long)
        size = sum(float(tensor.double().sum()) for tensor in measured.tensors.values())
        if not math.isfinite(size) or size == 0.0:
            raise NonFiniteInputError(
                f"{name}: what its calibration sets say of it is {'zero' if size == 0 else size}: "
                "the model's outputs are not usable."
            )
        return measured

    def _weights(self, number: int) -> dict[str, torch.Tensor]:
        """Return an expert's tensors, whatever its form: the merge of it alone."""
        prepared, source = self.prepared, self.prepared.recipe.checkpoints[number]
        recipe = prepared.recipe.model_copy(
            update={
                "checkpoints": (source.model_copy(update={"weight": 1.0}),),
                "method": "soup",
                "parameters": {},
                "rules": (),
                "calibration": None,
                "output": OutputSpec(dtype="float32"),
            }
        )
        expert = prepared.experts[number]
        # The copies of tied tensors are compared in the merge itself.
        alone = replace(
            prepared,
            recipe=recipe,
            experts=(expert,),
            checked=replace(prepared.checked, tied_copies=()),
        )
        base = [self.locals[0]] if prepared.base else []
        local = self.locals[number + len(base)]
        job = make_job(replan(alone, recipe), [*base, local], self._folder, self.settings)
        weights: dict[str, torch.Tensor] = {}
        run_in_memory(job, weights, Observer(lambda done, total: self._check_stop()))
        return weights

    def _key(self, kind: Statistic, number: int, examples: Sequence[Example]) -> str:
        base = int(self.prepared.base is not None)
        local, reference = self.locals[number + base], self.locals[0]
        made = {n: sha for n, sha in reference.file_sha256.items() if n.endswith((".json", ".txt"))}
        document = {
            "recipe": _RECIPE,
            "kind": kind,
            "expert": [local.sha256, local.base.sha256 if local.base else None],
            "reference": sorted(made.items()),
            "examples": [example.key for example in examples],
            "versions": {name: version(name) for name in _LIBRARIES},
            "origin": origin_of(self._device),
        }
        text = json.dumps(document, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()
