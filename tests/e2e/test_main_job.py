"""The main job over HTTP: two checkpoints in, one model and its word error rate out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.storage.artifacts import ArtifactStore
from tests.e2e.stack import Stack, afluente, digests, running


@pytest.fixture(scope="module")
def stack(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("job") / "data", AFLUENTE_FILE_ROOTS=str(models)) as one:
        yield one


@pytest.fixture(scope="module")
def recipe(models: Path) -> dict[str, Any]:
    return {
        "name": "two rivers",
        "base": (models / "base").as_uri(),
        "checkpoints": [(models / "telephone").as_uri(), (models / "parliament").as_uri()],
        "method": "boosted_tsv_m",
        "evaluation": {
            "datasets": [
                {
                    "name": "tones",
                    "uri": (models / "speech" / "manifest.jsonl").as_uri(),
                    "group": "in_domain",
                }
            ],
            "language": "pt",
            "num_beams": 1,
            "gate": {"max_regression": {"tones": 1}},
        },
    }


@pytest.fixture(scope="module")
def merge(stack: Stack, recipe: dict[str, Any]) -> dict[str, Any]:
    posted = stack.post(recipe)
    stack.finish(posted["id"])
    return stack.wait_for(posted["id"], lambda merge: merge["evaluation"]["status"] == "succeeded")


def test_a_merge_comes_out_with_its_error_rates(stack, merge):
    document = stack.get(f"/merges/{merge['id']}/wer")
    assert document["status"] == "succeeded"
    assert [dataset["name"] for dataset in document["datasets"]] == ["tones"]
    assert set(document["systems"]) == {"base", "telephone", "parliament"}
    assert document["averages"]["in_domain"]["datasets"] == 1
    [dataset] = document["datasets"]
    gate = merge["evaluation"]["gate"]
    assert document["evaluation"]["gate"] == gate
    assert gate["passed"] is (dataset["compared_with"]["base"]["delta"] <= 1)


def test_a_gate_that_is_not_passed_ends_the_command(stack, recipe, tmp_path):
    evaluation = recipe["evaluation"] | {"gate": {"max_wer": -1}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"evaluation": evaluation}))
    done = afluente("submit", str(tmp_path / "recipe.json"), "--wait", "--url", stack.url)
    assert done.returncode == 3, done.stderr
    assert done.stderr.endswith("gate: not passed\n")
    assert "tones" in done.stdout


def test_the_tar_holds_the_published_files(stack, merge, tmp_path):
    content = stack.http.get(f"/merges/{merge['id']}/artifacts.tar").content
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == set(digests(merge))


def test_the_command_line_makes_the_same_bytes(merge, recipe, tmp_path):
    document = {key: value for key, value in recipe.items() if key not in {"name", "evaluation"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    output = tmp_path / "merged"
    done = afluente("merge", str(tmp_path / "recipe.yaml"), "--output", str(output))
    assert done.returncode == 0, done.stderr
    printed = {Path(line.split()[2]).name: line.split()[0] for line in done.stdout.splitlines()}
    assert printed == digests(merge)
    assert {path.name for path in output.iterdir()} == set(printed)


def test_submit_follows_a_merge_and_prints_its_rates(stack, recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"method": "soup"}))
    done = afluente("submit", str(tmp_path / "recipe.json"), "--wait", "--url", stack.url)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout
    assert "model.safetensors" in done.stdout
    assert "telephone" in done.stdout
    assert "merging" in done.stderr


def test_submit_shows_every_problem_of_a_refused_recipe(stack, recipe, tmp_path):
    wrong = recipe | {"method": "soop", "sead": 1}
    (tmp_path / "recipe.json").write_text(json.dumps(wrong))
    done = afluente("submit", str(tmp_path / "recipe.json"), "--url", stack.url)
    assert done.returncode == 1
    assert "sead" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_idempotency_key_gives_the_same_merge(stack, recipe, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(recipe | {"method": "soup"}))
    words = ["submit", str(tmp_path / "recipe.json"), "--url", stack.url]
    first, second = (afluente(*words, "--idempotency-key", "k1") for _ in range(2))
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout == second.stdout


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_wer_prints_rates_in_every_form(stack, merge, form):
    done = afluente("wer", merge["id"], "--format", form, "--url", stack.url)
    assert done.returncode == 0, done.stderr
    assert "tones" in done.stdout
    if form == "json":
        assert json.loads(done.stdout)["merge_id"] == merge["id"]


def test_wer_finds_the_service_of_the_data_folder(stack, merge):
    done = afluente("wer", merge["id"], AFLUENTE_DATA_DIR=str(stack.data))
    assert done.returncode == 0, done.stderr


def test_wer_of_an_unknown_merge_is_one_line(stack):
    done = afluente("wer", "mrg_01ARZ3NDEKTSV4RRFFQ69G5FAV", "--url", stack.url)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_evaluate_prints_the_rates_of_one_checkpoint(models):
    manifest = str(models / "speech" / "manifest.jsonl")
    done = afluente(
        "evaluate", str(models / "base"), "-m", manifest, "--language", "pt", "--num-beams", "1"
    )
    assert done.returncode == 0, done.stderr
    assert "speech" in done.stdout
    assert "base" in done.stdout


def test_only_published_merges_are_in_the_store(stack, merge):
    folders = [path.name for path in ArtifactStore(stack.data / "artifacts").inventory()]
    assert any(name.startswith(merge["id"]) for name in folders)
