"""The header parser takes what the safetensors library writes, and refuses everything else."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.contract.errors import InvalidCheckpointError
from app.sources.safetensors import MAX_HEADER_BYTES, SafetensorsHeader, parse_header


def pack(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def parse(content: bytes, size: int | None = None) -> SafetensorsHeader:
    return parse_header(lambda n: content[:n], size or len(content), "w", file="model.safetensors")


def tensor(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_offsets_count_from_the_start_of_the_file() -> None:
    content = pack({"a": tensor()}, b"\0" * 8)
    header = parse(content).tensors["a"]
    assert (header.start, header.end) == (len(content) - 8, len(content))
    assert (header.dtype, header.shape, header.file) == ("F32", (2,), "model.safetensors")


def test_tensors_come_in_stored_order() -> None:
    entries = {"late": tensor(offsets=(8, 16)), "early": tensor(offsets=(0, 8))}
    assert list(parse(pack(entries, b"\0" * 16)).tensors) == ["early", "late"]


def test_scalars_and_empty_tensors_are_taken() -> None:
    entries = {
        "scalar": tensor(shape=[], offsets=[0, 4]),
        "empty": tensor(shape=[0], offsets=[4, 4]),
    }
    assert set(parse(pack(entries, b"\0" * 4)).tensors) == {"scalar", "empty"}


def test_padding_after_the_header_is_taken() -> None:
    text = json.dumps({"a": tensor()}).encode() + b"   "
    assert list(parse(pack(text, b"\0" * 8)).tensors) == ["a"]


def test_a_header_longer_than_the_first_read_is_read_whole() -> None:
    entries = {f"{'n' * 200}{i}": tensor(offsets=(8 * i, 8 * i + 8)) for i in range(2000)}
    assert len(parse(pack(entries, b"\0" * 16_000)).tensors) == 2000


def test_the_librarys_own_files_are_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"a": numpy.ones((3, 4), "float16"), "b": numpy.arange(5), "c": numpy.float32(1)}
    arrays["c"] = numpy.array(2.0, "float32")
    content = safetensors.save(arrays, {"format": "pt"})
    header = parse(content)
    assert header.metadata == {"format": "pt"}
    for name, array in arrays.items():
        stored = header.tensors[name]
        assert stored.shape == array.shape
        assert content[stored.start : stored.end] == array.tobytes()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\1\2\3", "too few"),
        (b"\0" * 9, "too few"),
        (b"PK\3\4" + b"garbage" * 50, "over the 4,000,000"),
        (pack(b"{}", length=100_000_001), "over the 4,000,000"),
        (pack(b"{}", length=3), "cut off or not safetensors"),
        (pack(b"[1, 2]"), "does not start with"),
        (pack(b"\x80\x02}q"), "does not start with"),
        (pack(b'{"a": '), "not JSON"),
        (pack(b'{"a": "\xff"}'), "not JSON"),
        (pack(b'{"a":' * 100_000), "not JSON"),
        (pack(b'{"a": NaN}'), "NaN"),
        (pack(b'{"a": 1, "a": 1}'), "twice"),
        (pack(b'{"a": {"dtype": "F32", "dtype": "F32"}}'), "names 'dtype' twice"),
        (pack(b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"), "must state"),
        (pack({"a": {**tensor(), "dtype": [[[1] * 9] * 999]}}), "unknown dtype a list"),
        (pack({"a": tensor(shape=[2**63 - 1] * 300)}), "not a list of sizes"),
        (pack({"a": tensor(shape=[2**63 - 1] * 32)}, b"\0" * 8), "needs"),
        (pack(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b"]}}"), "not JSON"),
        (pack({"a": tensor(offsets=[0, 10**400])}), "begin, end"),
        (pack({"n" * 501: tensor()}, b"\0" * 8), "too long"),
        (pack({"n" * 10**6: tensor()}, b"\0" * 8), "too long"),
        (pack({f"t{n}": {} for n in range(5001)}), "5,001 tensors, over the 5,000"),
        (pack(b'{"a": [' + b"[]," * 60_000 + b"0]}"), "more than 100,000 values"),
        (pack(b'{"__metadata__": {' + b'"":"",' * 100_001 + b'"":""}}'), "values"),
        (pack({"__metadata__": {"k": 1}}), "not a string"),
        (pack({"__metadata__": [1]}), "not an object"),
        (pack({"a": 1}), "must state"),
        (pack({"a": {**tensor(), "more": 1}}, b"\0" * 8), "must state"),
        (pack({"a": tensor(dtype="F31")}, b"\0" * 8), "unknown dtype 'F31'"),
        (pack({"a": {**tensor(), "dtype": 3}}, b"\0" * 8), "unknown dtype"),
        (pack({"a": tensor(shape=[-2])}, b"\0" * 8), "not a list of sizes"),
        (pack({"a": tensor(shape=[True, 2])}, b"\0" * 8), "not a list of sizes"),
        (pack({"a": tensor(shape=[2.0])}, b"\0" * 8), "not a list of sizes"),
        (pack({"a": tensor(shape=[2**62, 2**62])}, b"\0" * 8), "needs"),
        (pack({"a": tensor(shape=[3])}, b"\0" * 8), "needs 12 bytes"),
        (pack({"a": tensor(offsets=[8, 0])}, b"\0" * 8), "begin, end"),
        (pack({"a": tensor(offsets=[0, 8, 9])}, b"\0" * 8), "begin, end"),
        (pack({"a": tensor(offsets=[-8, 0])}, b"\0" * 8), "begin, end"),
        (pack({"a": tensor(), "b": tensor(offsets=[4, 12])}, b"\0" * 12), "'b' overlaps"),
        (pack({"a": tensor(offsets=[4, 12])}, b"\0" * 12), "gap of 4 bytes"),
        (pack({"a": tensor()}, b"\0" * 7), "cut off"),
        (pack({"a": tensor()}, b"\0" * 9), "belong to no tensor"),
        (pack({"": tensor()}, b"\0" * 8), "empty"),
        (pack({"a\0": tensor()}, b"\0" * 8), "do not print"),
        (pack(b'{"\\ud800": {}}'), "do not print"),
    ],
)
def test_a_bad_file_is_refused_by_name_and_reason(content: bytes, said: str) -> None:
    with pytest.raises(InvalidCheckpointError, match=said) as refusal:
        parse(content)
    assert refusal.value.message.startswith("w: ")
    assert len(refusal.value.message) < 2000


@given(st.binary(max_size=200))
def test_garbage_never_ends_in_another_error(content: bytes) -> None:
    with pytest.raises(InvalidCheckpointError):
        parse(content + b"\1")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries({"dtype": _JSON, "shape": _JSON, "data_offsets": _JSON}) | _JSON,
        max_size=3,
    ),
    st.binary(max_size=20),
)
def test_any_json_is_a_header_or_a_refusal(header: dict[str, Any], data: bytes) -> None:
    content = pack(header, data)
    try:
        tensors = parse(content).tensors
    except InvalidCheckpointError:
        return
    assert sum(stored.size_bytes for stored in tensors.values()) == len(data)


@given(st.integers(0, 400))
def test_a_cut_file_is_refused_wherever_it_is_cut(at: int) -> None:
    content = pack({"a": tensor(), "b": tensor(offsets=(8, 16))}, b"\7" * 16)
    with pytest.raises(InvalidCheckpointError):
        parse(content[: at % len(content)])


@given(st.text(min_size=1, max_size=300), st.integers(1, 10**6))
def test_any_text_in_place_of_a_header_is_refused(text: str, times: int) -> None:
    """Also long and repetitive ones, quickly: hypothesis has a deadline for each."""
    content = b'{"' + (text.encode("utf-8", "surrogatepass") * times)[:300_000]
    with pytest.raises(InvalidCheckpointError):
        parse(pack(content))


def test_many_duplicates_are_found_in_linear_time() -> None:
    names = ",".join(f'"{n}":0' for n in range(49_000))
    started = time.process_time()
    with pytest.raises(InvalidCheckpointError, match="names '48999' twice"):
        parse(pack(f'{{{names},"48999":0,"48999":0}}'.encode()))
    assert time.process_time() - started < 2.0


def test_a_header_beyond_the_limit_is_never_read() -> None:
    asked = []

    def read_prefix(length: int) -> bytes:
        asked.append(length)
        return (MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{" * (length - 8)

    with pytest.raises(InvalidCheckpointError, match="over the"):
        parse_header(read_prefix, 10**12, "w")
    assert sum(asked) < 10**6
