"""What an evaluation reads: manifests by URI, and audio by path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.contract.errors import (
    SourceNotAllowedError,
    SourceNotFoundError,
    SourceTooLargeError,
)
from app.sources.datasets import resolve_dataset
from app.sources.policy import SourcePolicy


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a manifest under `models/`."""
    path = tmp_path / "models" / "test.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    return path


def test_a_local_file_is_used_in_place(manifest: Path, policy: SourcePolicy) -> None:
    assert resolve_dataset(manifest.as_uri(), policy) == manifest
    assert resolve_dataset(str(manifest), replace(policy, file_roots=None)) == manifest


def test_the_folder_of_a_manifest_is_used_in_place(manifest: Path, policy: SourcePolicy) -> None:
    assert resolve_dataset(manifest.parent.as_uri(), policy) == manifest.parent


def test_a_linked_file_keeps_its_name_and_place(manifest: Path, policy: SourcePolicy) -> None:
    link = manifest.with_name("latest.jsonl")
    link.symlink_to(manifest.rename(manifest.with_name("blob")))
    assert resolve_dataset(link.as_uri(), policy) == link


def test_a_remote_file_keeps_its_name(stand_in: Any, web_policy: SourcePolicy) -> None:
    stand_in.files["/eval/a b.jsonl"] = b"{}"
    path = resolve_dataset(f"{stand_in.url}/eval/a%20b.jsonl", web_policy)
    assert path.name == "a b.jsonl"
    assert path.read_bytes() == b"{}"


def test_an_empty_remote_file_is_a_file(stand_in: Any, web_policy: SourcePolicy) -> None:
    stand_in.files["/empty.jsonl"] = b""
    assert resolve_dataset(f"{stand_in.url}/empty.jsonl", web_policy).read_bytes() == b""


def test_what_is_not_there_or_not_allowed_is_refused(
    stand_in: Any, web_policy: SourcePolicy, manifest: Path
) -> None:
    for uri, error in {
        f"{stand_in.url}/nothing.jsonl": SourceNotFoundError,
        f"{manifest.as_uri()}x": SourceNotFoundError,
        manifest.parent.parent.as_uri(): SourceNotAllowedError,
        f"{stand_in.url}/kaldi/wav.scp": SourceNotAllowedError,
        "file:///etc/passwd": SourceNotAllowedError,
        "hf://org/data": SourceNotAllowedError,
        "merge://mrg_1": SourceNotAllowedError,
    }.items():
        with pytest.raises(error) as refusal:
            resolve_dataset(uri, web_policy, param="evaluation.datasets[0].uri")
        assert refusal.value.param == "evaluation.datasets[0].uri"


def test_a_file_over_the_quota_is_refused(
    stand_in: Any, web_policy: SourcePolicy, manifest: Path
) -> None:
    stand_in.files["/a.jsonl"] = b"{}"
    for uri in (manifest.as_uri(), f"{stand_in.url}/a.jsonl"):
        with pytest.raises(SourceTooLargeError):
            resolve_dataset(uri, replace(web_policy, max_source_bytes=1))
