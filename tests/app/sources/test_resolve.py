"""Local checkpoints: what is read, and every damaged or forbidden one by its reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import (
    AfluenteError,
    ConflictError,
    InvalidCheckpointError,
    NotFoundError,
    SourceError,
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.sources.architectures.whisper.shapes import expected_shapes
from app.sources.checkpoint import SourceFile
from app.sources.layout import read_contents
from app.sources.policy import SourcePolicy
from app.sources.resolve import resolve
from tests.app.sources.conftest import CONFIG as CONFIG_OF_A_MODEL
from tests.app.sources.conftest import write_safetensors

Make = Callable[..., Path]
CONFIG = {"model_type": "whisper"}
_HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
ONE = len(_HEADER).to_bytes(8, "little") + _HEADER + b"\0" * 8
TWO = ONE.replace(b'"a"', b'"b"')


def sharded(weight_map: object, **shards: bytes) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors.index.json": json.dumps({"weight_map": weight_map}).encode(),
        **{f"{name}.safetensors": content for name, content in shards.items()},
    }


def refusal(folder: Path, policy: SourcePolicy) -> AfluenteError:
    with pytest.raises(AfluenteError) as refused:
        resolve(folder.as_uri(), policy, param="checkpoints[1].uri")
    assert refused.value.param == "checkpoints[1].uri"
    assert all(problem.param == "checkpoints[1].uri" for problem in refused.value.as_problems())
    return refused.value


def test_config_headers_and_files_used_are_read(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint("telephone")
    (folder / "README.md").write_text("not used")
    found = resolve(f"{folder.as_uri()}/", policy)
    assert found.name == "telephone"
    assert found.resolved == folder.as_uri()
    assert found.config["d_model"] == 8
    assert [file.name for file in found.files] == [
        "config.json",
        "tokenizer.json",
        "preprocessor_config.json",
        "model.safetensors",
    ]
    assert {n: t.shape for n, t in found.tensors.items()} == expected_shapes(found.config)
    assert found.metadata == {"format": "pt"}


def test_a_link_is_pinned_to_where_it_leads(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint("v1")
    latest = folder.parent / "latest"
    latest.symlink_to("v1")
    found = resolve(latest.as_uri(), policy)
    assert (found.name, found.resolved) == ("latest", folder.as_uri())


def test_shards_are_read_through_their_index(make_checkpoint: Make, policy: SourcePolicy) -> None:
    weight_map = {"b": "s2.safetensors", "a": "s1.safetensors"}
    folder = make_checkpoint(files=sharded(weight_map, s1=ONE, s2=TWO))
    found = resolve(folder.as_uri(), policy)
    assert [(t.name, t.file) for t in found.tensors.values()] == [
        ("a", "s1.safetensors"),
        ("b", "s2.safetensors"),
    ]
    assert "model.safetensors.index.json" in {file.name for file in found.files}


def test_a_whole_file_goes_before_shards(make_checkpoint: Make, policy: SourcePolicy) -> None:
    files = sharded({"b": "s1.safetensors"}, s1=TWO, model=ONE)
    found = resolve(make_checkpoint(files=files).as_uri(), policy)
    assert [file.name for file in found.files] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("weight_map", "shards", "said"),
    [
        ({"a": "s1.safetensors", "b": "s2.safetensors"}, {"s1": ONE}, "s2.safetensors"),
        ({"a": "../s1.safetensors"}, {"s1": ONE}, "beside the index"),
        ({"a": "/etc/s1.safetensors"}, {"s1": ONE}, "beside the index"),
        ({"a": "sub/s1.safetensors"}, {"s1": ONE}, "beside the index"),
        ({"a": "..%2fs1.safetensors"}, {"s1": ONE}, "beside the index"),
        ({"a": "pytorch_model.bin"}, {"s1": ONE}, "beside the index"),
        ({"a": 1}, {"s1": ONE}, "beside the index"),
        ({}, {"s1": ONE}, "no weight_map"),
        ([], {"s1": ONE}, "no weight_map"),
        ({"a": "s1.safetensors", "c": "s1.safetensors"}, {"s1": ONE}, "names: c"),
        ({"a": "s1.safetensors", "x": "s2.safetensors"}, {"s1": ONE, "s2": ONE}, "another shard"),
        ({"a": "s1.safetensors", "b": "s1.safetensors"}, {"s1": TWO}, "names: a"),
    ],
)
def test_a_bad_index_is_refused(
    make_checkpoint: Make, policy: SourcePolicy, weight_map: Any, shards: Any, said: str
) -> None:
    error = refusal(make_checkpoint(files=sharded(weight_map, **shards)), policy)
    assert isinstance(error, InvalidCheckpointError)
    assert said in error.message


def test_a_tensor_that_the_index_does_not_list_is_refused(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    files = sharded({"a": "s1.safetensors"}, s1=ONE)
    two = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]},
        }
    ).encode()
    files["s1.safetensors"] = len(two).to_bytes(8, "little") + two + b"\0\0"
    assert "does not list: b" in refusal(make_checkpoint(files=files), policy).message


def test_a_missing_folder_is_refused(policy: SourcePolicy) -> None:
    assert policy.file_roots
    error = refusal(policy.file_roots[0] / "nowhere", policy)
    assert isinstance(error, SourceNotFoundError)
    assert "no such folder" in error.message


def test_a_file_in_place_of_a_folder_is_refused(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    error = refusal(make_checkpoint() / "model.safetensors", policy)
    assert "name the folder" in error.message
    named = make_checkpoint("named", files={"mine.pt": b"\x80\x02."}) / "mine.pt"
    assert "--checkpoint_path mine.pt" in refusal(named, policy).message


def test_all_that_an_empty_folder_lacks_is_told_at_once(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    error = refusal(make_checkpoint(files={}), policy)
    assert isinstance(error, InvalidCheckpointError)
    messages = [problem.message for problem in error.problems]
    assert len(messages) == 2
    assert "no config.json" in messages[0]
    assert "neither model.safetensors" in messages[1]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("config.json", "pytorch_model.bin"), "torch.load('pytorch_model.bin', weights_only=True"),
        (("config.json", "pytorch_model.bin.index.json"), "save_pretrained('.')"),
        (("config.json", "model.pt"), "torch.load('model.pt', weights_only=True"),
        (("model.pt",), "convert_openai_to_hf.py --checkpoint_path model.pt"),
        (("large-v3-turbo.pt",), "convert_openai_to_hf.py --checkpoint_path large-v3-turbo.pt"),
    ],
)
def test_pickled_weights_are_never_read_and_the_conversion_is_told(
    make_checkpoint: Make, policy: SourcePolicy, names: tuple[str, ...], said: str
) -> None:
    files = {name: b"{}" if name == "config.json" else b"\x80\x02." for name in names}
    error = refusal(make_checkpoint(files=files), policy)
    message = error.as_problems()[-1].message
    assert f"{names[-1]} only" in message
    assert "never read" in message
    assert said in message


def test_the_conversion_of_a_state_dict_gives_what_was_pickled(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    folder = make_checkpoint(files={"config.json": b"{}"})
    weight = torch.arange(6.0).view(2, 3)
    torch.save({"a": weight, "tied": weight}, folder / "pytorch_model.bin")
    command = refusal(folder, policy).message.partition("with: ")[2].removeprefix("python -c ")
    subprocess.run([sys.executable, "-c", command.strip('"')], cwd=folder, check=True)
    found = load_file(folder / "model.safetensors")
    assert torch.equal(found["a"], weight)
    assert torch.equal(found["tied"], weight)


def test_a_shard_s_name_runs_nothing_where_the_command_is_pasted(
    make_checkpoint: Make, policy: SourcePolicy, tmp_path: Path
) -> None:
    shard = """$(touch ran)`touch ran`'"; touch ran; '.safetensors"""
    name = "encoder.blocks.0.attn.key.weight"
    files = {
        "config.json": b'{"model_type": "whisper"}',
        "model.safetensors.index.json": json.dumps({"weight_map": {name: shard}}).encode(),
        shard: write_safetensors({name: ("F32", (1,))}),
    }
    message = refusal(make_checkpoint(files=files), policy).message
    command = message[message.index("python -c") :].removeprefix("python -c ")
    (tmp_path / "shell").mkdir()
    shown = ["sh", "-c", f"printf %s {command}"]
    script = subprocess.run(shown, cwd=tmp_path / "shell", check=True, capture_output=True).stdout
    assert repr(shard) in script.decode()
    compile(script, "script", "exec")
    assert not list((tmp_path / "shell").iterdir())


def test_names_of_openai_s_layout_are_refused_with_the_way_out(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    files = {
        "config.json": b'{"model_type": "whisper"}',
        "model.safetensors": write_safetensors({"encoder.blocks.0.attn.key.weight": ("F32", (1,))}),
    }
    error = refusal(make_checkpoint(files=files), policy)
    assert "encoder.blocks.0.attn.key.weight" in error.message
    assert "rename_keys(s.load_file('model.safetensors'))" in error.message


def test_large_sharded_checkpoints_are_refused_before_they_are_read(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    many = {f"t{n}": "s.safetensors" for n in range(100_001)}
    shards = {f"t{n}": f"{n}.safetensors" for n in range(65)}
    long = {"a": f"{'n' * 300}.safetensors", "b": "\ud800.safetensors"}
    both = {f"{k}.{n}": f"s{k}.safetensors" for k in range(2) for n in range(3000)}
    wide_shards = {
        f"s{k}": write_safetensors({f"{k}.{n}": ("F32", (1,)) for n in range(3000)})
        for k in range(2)
    }
    for name, files, said in (
        ("many", sharded(many), "more than 100,000 values"),
        ("shards", sharded(shards), "names 65 shards, over 64"),
        ("long", sharded(long), "names the shard"),
        ("large", {"model.safetensors.index.json": b" " * 8_000_001}, "8,000,001 bytes"),
        ("wide", sharded(both, **wide_shards), "over 5,000 tensors"),
    ):
        error = refusal(make_checkpoint(name, files={"config.json": b"{}", **files}), policy)
        assert said in " ".join(problem.message for problem in error.as_problems())
        assert len(error.message) < 2000


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(
    make_checkpoint: Make, policy: SourcePolicy, config: bytes
) -> None:
    folder = make_checkpoint(files={"config.json": config, "model.safetensors": ONE})
    assert "config.json is not" in refusal(folder, policy).message


def test_damage_in_config_and_weights_is_told_at_once(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint(files={"config.json": b"?", "model.safetensors": ONE[:-1]})
    assert len(refusal(folder, policy).problems) == 2


@pytest.mark.parametrize("path", ["/etc", "/nowhere", "/"])
def test_a_path_outside_the_roots_is_refused_whether_it_exists_or_not(
    policy: SourcePolicy, path: str
) -> None:
    with pytest.raises(SourceNotAllowedError, match="AFLUENTE_FILE_ROOTS"):
        resolve(f"file://{path}", policy)


def test_no_roots_allow_no_path(make_checkpoint: Make, policy: SourcePolicy) -> None:
    error = refusal(make_checkpoint(), replace(policy, file_roots=()))
    assert isinstance(error, SourceNotAllowedError)


def test_a_folder_beside_a_root_of_the_same_beginning_is_refused(
    make_checkpoint: Make, policy: SourcePolicy, tmp_path: Path
) -> None:
    make_checkpoint().parent.rename(tmp_path / "models-secret")
    error = refusal(tmp_path / "models-secret" / "base", policy)
    assert isinstance(error, SourceNotAllowedError)


def test_a_folder_linked_to_the_outside_is_refused(
    make_checkpoint: Make, policy: SourcePolicy, tmp_path: Path
) -> None:
    outside = make_checkpoint().rename(tmp_path / "outside")
    link = tmp_path / "models" / "inside"
    link.symlink_to(outside)
    assert isinstance(refusal(link, policy), SourceNotAllowedError)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_linked_to_the_outside_is_refused(
    make_checkpoint: Make, policy: SourcePolicy, tmp_path: Path, name: str
) -> None:
    folder = make_checkpoint()
    outside = (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(outside)
    error = refusal(folder, policy)
    assert isinstance(error, SourceNotAllowedError)
    assert name in error.message


def test_a_file_linked_to_the_inside_is_taken(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint()
    blob = (folder / "model.safetensors").rename(folder.parent / "blob")
    (folder / "model.safetensors").symlink_to(blob)
    weights = resolve(folder.as_uri(), policy).file("model.safetensors")
    assert weights is not None
    assert weights.path == blob


def test_a_dangling_link_is_refused_by_name(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint()
    (folder / "vocab.json").symlink_to(folder / "gone.json")
    assert "vocab.json: there is no such file" in refusal(folder, policy).message


def test_links_in_a_circle_are_refused(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint()
    (folder / "vocab.json").symlink_to(folder / "vocab.json")
    assert "vocab.json" in refusal(folder, policy).message


def test_a_pipe_is_refused_without_waiting(make_checkpoint: Make, policy: SourcePolicy) -> None:
    folder = make_checkpoint()
    os.mkfifo(folder / "vocab.json")
    assert "not a regular file" in refusal(folder, policy).message


def test_a_source_over_the_quota_is_refused(make_checkpoint: Make, policy: SourcePolicy) -> None:
    error = refusal(make_checkpoint(), replace(policy, max_source_bytes=1000))
    assert isinstance(error, SourceTooLargeError)


def test_an_earlier_merge_is_read_from_the_artifact_store(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    folder = make_checkpoint()
    found = resolve(
        "merge://mrg_1", replace(policy, file_roots=(), merge_folder=lambda merge_id: folder)
    )
    assert (found.resolved, found.name) == ("merge://mrg_1", "mrg_1")


@pytest.mark.parametrize("kind", [NotFoundError, ConflictError])
def test_a_merge_without_a_result_is_not_found(
    policy: SourcePolicy, kind: type[AfluenteError]
) -> None:
    def fail(merge_id: str) -> Path:
        raise kind(f"{merge_id} has not finished")

    with pytest.raises(SourceNotFoundError, match="has not finished"):
        resolve("merge://mrg_1", replace(policy, merge_folder=fail))


def test_a_plain_path_is_taken_where_no_roots_are_set(
    make_checkpoint: Make, policy: SourcePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint()
    monkeypatch.chdir(folder.parent)
    found = resolve("base", replace(policy, file_roots=None))
    assert found.resolved == folder.as_uri()


def test_a_checkpoint_is_resolved_in_milliseconds(
    make_checkpoint: Make, policy: SourcePolicy
) -> None:
    uri = make_checkpoint().as_uri()
    resolve(uri, policy)
    start = time.perf_counter()
    for _ in range(20):
        resolve(uri, policy)
    assert (time.perf_counter() - start) / 20 < 0.05


class InMemory:
    """A checkpoint's folder of these files."""

    label = "m"

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def find(self, names: Iterable[str]) -> dict[str, SourceFile]:
        return {n: SourceFile(n, len(self._files[n])) for n in names if n in self._files}

    def read_prefix(self, file: SourceFile, length: int) -> bytes:
        return self._files[file.name][:length]


_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
_SHARD = st.sampled_from(["s.safetensors", "t.safetensors"]) | _LEAF
_ANY = st.recursive(
    _LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
_INDEX = st.fixed_dictionaries(
    {"weight_map": st.dictionaries(st.sampled_from("ab") | st.text(max_size=3), _SHARD) | _ANY}
)
_CONFIGS = st.dictionaries(st.sampled_from([*CONFIG_OF_A_MODEL, "auto_map"]), _ANY, max_size=4)


@given(index=_INDEX | _ANY, changes=_CONFIGS, generation=_ANY, noise=st.binary(max_size=20))
def test_any_documents_are_a_checkpoint_or_refused(
    index: object, changes: dict[str, object], generation: object, noise: bytes
) -> None:
    files = {
        "config.json": json.dumps(CONFIG_OF_A_MODEL | changes).encode(),
        "generation_config.json": json.dumps(generation).encode(),
        "tokenizer.json": noise,
        "model.safetensors.index.json": json.dumps(index).encode(),
        "s.safetensors": ONE,
        "t.safetensors": ONE[:8] + noise + ONE[8 + len(noise) :],
    }
    with suppress(SourceError):
        read_contents(InMemory(files), 10**9)
    with suppress(SourceError):
        read_contents(InMemory(dict.fromkeys(files, noise)), 10**9)
