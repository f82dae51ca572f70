"""The syntax of `--sweep`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidRequestError
from cli.sweeps import read_sweeps
from tests.tiny_whisper import make_base, noisy, variant


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.3,0.5,1.0", [0.3, 0.5, 1.0]),
        ("0.1:1.0:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("0.1:0.35:0.1", [0.1, 0.2, 0.3]),
        ("1:0:-0.5", [1.0, 0.5, 0.0]),
        ("0.5:0.5:0.1", [0.5]),
        ("1:10:3", [1, 4, 7, 10]),
        (" 0.1 , 0.5:0.7:0.1 ", [0.1, 0.5, 0.6, 0.7]),
        ("polar,svd", ["polar", "svd"]),
        ("null,0.5", [None, 0.5]),
        ("true,false", [True, False]),
        ("1e-3,-2", [1e-3, -2]),
    ],
)
def test_values_are_a_list_a_range_or_both(text: str, values: list[object]) -> None:
    read = read_sweeps([f"beta={text}"])["beta"]
    assert read == values
    assert [type(value) for value in read] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["beta"], "not a parameter with values"),
        (["=1"], "not a parameter with values"),
        (["beta="], "empty value"),
        (["beta=0.1,,0.2"], "empty value"),
        (["beta=0:1"], "not a range"),
        (["beta=a:b:c"], "not a range"),
        (["beta=0:1:0"], "step that is not 0"),
        (["beta=0:inf:1"], "finite"),
        (["beta=1:0:0.1"], "lead away"),
        (["beta=0:1:0.000001"], "more than 100"),
        (["beta=0.1", "beta=0.2"], "given twice"),
    ],
)
def test_invalid_values_are_refused_with_an_example(options: list[str], says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says) as caught:
        read_sweeps(options)
    assert caught.value.param == "--sweep"


@given(st.text(max_size=20))
def test_any_option_is_parsed_or_refused(text: str) -> None:
    try:
        swept = read_sweeps([f"beta={text}"])
    except InvalidRequestError:
        return
    assert 1 <= len(swept["beta"]) <= 100 * (text.count(",") + 1)


def test_a_sweep_has_one_folder_per_point(afluente, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    experts = [variant(base, tmp_path / f"e{k}", noisy(k)) for k in (1, 2)]
    recipe = {
        "base": str(base),
        "checkpoints": [str(e) for e in experts],
        "method": "ties",
        "parameters": {"density": [0.2, 0.5]},
    }
    (tmp_path / "r.json").write_text(json.dumps(recipe))
    options = ["--sweep", "scaling_coefficient=0.5:1:0.5", "--threads", "2"]
    memory = {"AFLUENTE_MEMORY_BYTES": str(3 * 2**30)}
    done = afluente("merge", "r.json", "-o", "out", *options, **memory)
    assert done.returncode == 0, done.stderr
    assert "2 threads, 3,072 MiB of working memory: " in done.stderr
    points = [f"density={d},scaling_coefficient={x}" for d in (0.2, 0.5) for x in (0.5, 1.0)]
    assert [line.split()[2] for line in done.stdout.splitlines()] == [
        f"out/{point}/model.safetensors" for point in points
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [*points, "sweep.json"]
