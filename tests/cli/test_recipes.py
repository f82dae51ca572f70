from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import MalformedBodyError, SourceNotFoundError
from cli.recipes import read_recipe, with_absolute_paths

RECIPE = {"base": "m/base", "checkpoints": ["m/a", {"uri": "m/b", "weight": 2.0}], "method": "soup"}


@pytest.mark.parametrize("name", ["r.json", "r.yaml", "recipe"])
def test_json_and_yaml_say_the_same(tmp_path, name):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(RECIPE) if name == "r.yaml" else json.dumps(RECIPE))
    assert read_recipe(path) == RECIPE


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("r.json", "{'a': 1}", "line 1"),
        ("r.yaml", "a: [1\nb: 2", "line 2"),
        ("r.yaml", "- 1\n- 2", "must be an object"),
        ("r.json", "[]", "must be an object"),
        ("r.yaml", "!!python/object/apply:os.getcwd []", "tag"),
        ("r.yaml", "method: soup\nmethod: tsv_m", "twice"),
    ],
)
def test_an_invalid_recipe_is_refused_with_file_and_line(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(MalformedBodyError, match=says) as caught:
        read_recipe(path)
    assert name in str(caught.value)


def test_a_missing_recipe_and_one_in_another_encoding_are_refused(tmp_path):
    with pytest.raises(SourceNotFoundError, match=r"nowhere\.json"):
        read_recipe(tmp_path / "nowhere.json")
    (tmp_path / "latin").write_bytes("ação".encode("latin-1"))
    with pytest.raises(MalformedBodyError, match="UTF-8"):
        read_recipe(tmp_path / "latin")


def test_plain_paths_become_file_uris_and_uris_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets = [{"name": "d", "uri": "speech/manifest.jsonl"}]
    document = RECIPE | {"evaluation": {"datasets": datasets}, "base": "hf://openai/whisper-tiny"}
    recipe = with_absolute_paths(document)
    root = tmp_path.resolve().as_uri()
    assert recipe["base"] == "hf://openai/whisper-tiny"
    assert recipe["checkpoints"] == [f"{root}/m/a", {"uri": f"{root}/m/b", "weight": 2.0}]
    assert recipe["evaluation"]["datasets"][0]["uri"] == f"{root}/speech/manifest.jsonl"
    assert with_absolute_paths(recipe) == recipe


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["base", "checkpoints", "evaluation", "x"]), _JSON))
def test_invalid_fields_of_a_recipe_reach_the_service(document):
    assert with_absolute_paths(document).keys() == document.keys()


def test_standard_input_is_read_for_a_dash(afluente):
    done = afluente("merge", "-", "--output", "out", stdin="method: [")
    assert done.returncode == 1
    assert "YAML" in done.stderr
    assert not Path("out").exists()
