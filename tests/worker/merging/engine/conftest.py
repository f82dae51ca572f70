"""A real, tiny Whisper: a base and experts as Hugging Face folders, and a way to run the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.planning import cost
from app.services.preparation import prepare, source_policy
from tests.tiny_whisper import make_base, noisy, variant
from worker.merging import reductions
from worker.merging.engine.job import Job
from worker.merging.linalg.spectrum import Spectrum, spectra_of
from worker.merging.local import fetch_all, make_job


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("checkpoints") / "base")


@pytest.fixture(scope="session")
def expert_folders(base_folder: Path) -> list[Path]:
    return [variant(base_folder, base_folder.parent / f"e{k}", noisy(k)) for k in (1, 2, 3)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


@pytest.fixture
def make(settings: Settings, tmp_path: Path) -> Callable[..., Job]:
    """Return a function from a recipe to an engine job in `attempt` (a folder's name)."""

    def build(
        document: dict[str, Any], attempt: str = "1", previous: tuple[Path, ...] = (), **extra: Any
    ) -> Job:
        policy = source_policy(settings, None, any_path=True)
        prepared = prepare(parse_request(document).recipe, policy)
        fetched = fetch_all(prepared, policy)
        chosen = settings.model_copy(update=extra)
        return make_job(prepared, fetched, tmp_path / "scratch" / attempt, chosen, previous)

    return build


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tiny model as many blocks and stretches as a large one is."""
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 384)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of spectra that were computed, each time."""
    made: list[int] = []

    def counted(grams: list[torch.Tensor]) -> list[Spectrum]:
        made.append(len(grams))
        return spectra_of(grams)

    monkeypatch.setattr(reductions, "spectra_of", counted)
    return made
