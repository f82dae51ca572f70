"""Sweeps from recipe to folders: every point is what its recipe alone makes, all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import ConflictError, OutputOverflowError
from app.contract.settings import Settings
from tests.tiny_whisper import make_base, noisy, variant
from worker.merging.local import describe_files, merge_recipe
from worker.merging.sweep import sweep_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("checkpoints")
    base = make_base(folder / "base")
    experts = [variant(base, folder / f"e{k}", noisy(k)) for k in (1, 2, 3)]
    return {"base": str(base), "checkpoints": [str(e) for e in experts], "method": "ties"}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", device="cpu", threads=2)


def digests(folder: Path) -> dict[str, str]:
    return {file["name"]: file["sha256"] for file in describe_files(folder)}


@pytest.mark.parametrize(
    ("method", "swept"),
    [
        ("task_arithmetic", {"scaling_coefficient": [0.0, 0.3, 1.0]}),
        ("ties", {"density": [0.2, 1.0], "scaling_coefficient": [0.3, 1.0]}),
        ("boosted_tsv_m", {"beta": [0.1, 0.3], "rank_fraction": [None, 0.5]}),
        ("soup", {"normalize": [True, False]}),
    ],
)
def test_every_point_is_to_the_byte_what_its_recipe_makes_alone(
    method: str,
    swept: dict[str, list[Any]],
    recipe: dict[str, Any],
    settings: Settings,
    tmp_path: Path,
) -> None:
    document = recipe | {"method": method, "output": {"dtype": "bfloat16"}}
    sweep = sweep_recipe(document, swept, tmp_path / "out", settings)
    summary = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert summary["method"] == method
    assert [point["folder"] for point in summary["points"]] == list(sweep.merges)
    for point in summary["points"]:
        folder = tmp_path / "out" / point["folder"]
        one = document | {"parameters": point["parameters"]}
        alone = merge_recipe(one, tmp_path / "alone" / point["folder"], settings)
        assert digests(folder) == digests(alone.folder)
        assert {file["name"]: file["sha256"] for file in point["files"]} == digests(folder)
        assert sweep.merges[point["folder"]].files == alone.files
        assert sweep.merges[point["folder"]].warnings == alone.warnings
        made = json.loads((folder / "recipe.json").read_text())["parameters"]
        assert point["parameters"].items() <= made.items()


def test_a_point_that_fails_leaves_nothing_and_is_named(
    recipe: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    document = recipe | {"output": {"dtype": "float16"}}
    swept = {"scaling_coefficient": [0.5, 1e9]}
    with pytest.raises(OutputOverflowError, match=r"At scaling_coefficient=1000000000\.0: "):
        sweep_recipe(document, swept, tmp_path / "out", settings)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["data"])


def test_a_folder_that_holds_something_is_left_as_it_is(
    recipe: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(ConflictError, match="not empty"):
        sweep_recipe(recipe, {"density": [0.1, 0.2]}, tmp_path / "out", settings)
    assert (tmp_path / "out" / "mine").read_text() == "kept"
