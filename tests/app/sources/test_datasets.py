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
from app.sources.datasets import read_dataset
from app.sources.policy import SourcePolicy

LINE = b'{"audio_filepath": "a.wav", "text": "sim"}'


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Write a manifest under `models/`."""
    path = tmp_path / "models" / "manifest.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(LINE)
    return path


def test_a_local_file_or_its_folder_is_used_in_place(manifest: Path, policy: SourcePolicy) -> None:
    for uri in (manifest.as_uri(), manifest.parent.as_uri()):
        assert read_dataset(uri, policy).folder == manifest.parent
    anywhere = replace(policy, file_roots=None)
    assert read_dataset(str(manifest), anywhere).folder == manifest.parent


def test_a_linked_file_keeps_its_name_and_place(manifest: Path, policy: SourcePolicy) -> None:
    link = manifest.with_name("latest.csv")
    blob = manifest.rename(manifest.with_name("blob"))
    blob.write_text("path,text\na.wav,sim")
    link.symlink_to(blob)
    assert read_dataset(link.as_uri(), policy).folder == manifest.parent


def test_a_remote_file_keeps_its_name(stand_in: Any, web_policy: SourcePolicy) -> None:
    stand_in.files["/eval/a b.csv"] = b"path,text\na.wav,sim"
    read = read_dataset(f"{stand_in.url}/eval/a%20b.csv", web_policy)
    assert read.utterances[0].reference == "sim"
    assert read.folder.joinpath("a b.csv").read_bytes() == stand_in.files["/eval/a b.csv"]


def test_a_file_with_a_question_mark_in_its_name_is_found(
    manifest: Path, policy: SourcePolicy
) -> None:
    asking = manifest.rename(manifest.with_name("what?.jsonl"))
    assert read_dataset(asking.as_uri(), policy).utterances
    assert read_dataset(str(asking), replace(policy, file_roots=None)).utterances


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
        f"{manifest.as_uri()}?sig=secret": SourceNotAllowedError,
        f"{manifest.as_uri()}?limit=0": SourceNotAllowedError,
    }.items():
        with pytest.raises(error) as refusal:
            read_dataset(uri, web_policy, param="evaluation.datasets[0].uri")
        assert refusal.value.param == "evaluation.datasets[0].uri"
        assert "secret" not in refusal.value.message


def test_a_file_over_the_quota_is_refused(
    stand_in: Any, web_policy: SourcePolicy, manifest: Path
) -> None:
    stand_in.files["/a.jsonl"] = LINE
    for uri in (manifest.as_uri(), f"{stand_in.url}/a.jsonl"):
        with pytest.raises(SourceTooLargeError):
            read_dataset(uri, replace(web_policy, max_source_bytes=1))
