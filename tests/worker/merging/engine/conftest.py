"""A real, tiny Whisper: a base and experts as Hugging Face folders, and a way to run the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from app.contract.catalogue import CATALOGUE
from app.contract.catalogue.method import Statistic
from app.contract.recipe import parse_request
from app.contract.settings import Settings
from app.planning import cost
from app.services.preparation import Prepared, prepare, source_policy
from tests.tiny_whisper import make_base, noisy, variant
from worker.merging import reductions
from worker.merging.engine.job import Job
from worker.merging.engine.statistics import (
    GatheredStatistics,
    StatisticsFile,
    save_statistics,
)
from worker.merging.linalg.ops import Eigen, eigh
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
        if CATALOGUE[document["method"]].needs_calibration:
            document = {"calibration": UNHEARD, **document}
        prepared = prepare(parse_request(document).recipe, policy)
        fetched = fetch_all(prepared, policy)
        chosen = settings.model_copy(update=extra)
        folder = tmp_path / "scratch" / attempt
        statistics = imagined(prepared, tmp_path)
        return make_job(prepared, fetched, folder, chosen, previous, statistics)

    return build


UNHEARD = {"datasets": [{"name": "unheard", "uri": "file:///speech"}]}


def imagined(prepared: Prepared, folder: Path) -> dict[Statistic, GatheredStatistics]:
    """Random statistics of each expert, the same every time."""
    found: dict[Statistic, GatheredStatistics] = {}
    for kind in prepared.recipe.statistics:
        files = []
        for number in range(len(prepared.experts)):
            generator = torch.Generator().manual_seed(number)
            tensors = {}
            for name, header in prepared.checked.tensors.items():
                if kind != "input_grams":
                    tensors[name] = torch.randn(header.shape, generator=generator).square()
                elif len(header.shape) == 2 and "embed" not in name:
                    rows = torch.randn(2 * header.shape[1], header.shape[1], generator=generator)
                    tensors[name] = rows.mT @ rows
            path = folder / f"{kind}-{number}.safetensors"
            save_statistics(path, tensors, {})
            files.append(StatisticsFile(path))
        found[kind] = GatheredStatistics(files)
    return found


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tiny model as many blocks and stretches as a large one is."""
    monkeypatch.setattr(cost, "BLOCK_ENTRIES", 128)
    monkeypatch.setattr(cost, "STRETCH_ENTRIES", 384)


@pytest.fixture
def decomposed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of Gram matrices that were decomposed, each time."""
    made: list[int] = []

    def counted(grams: Sequence[torch.Tensor]) -> Sequence[Eigen]:
        made.append(len(grams))
        return eigh(grams)

    monkeypatch.setattr(reductions, "eigh", counted)
    return made
