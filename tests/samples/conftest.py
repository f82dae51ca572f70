from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
DOMAINS = ("clean", "telephone", "parliament", "fast", "street")
EXPERTS = ("telephone", "parliament", "fast")


@pytest.fixture(params=DOMAINS)
def domain_folder(request: pytest.FixtureRequest) -> Path:
    return SAMPLES / "speech" / str(request.param)


@pytest.fixture
def manifest(domain_folder: Path) -> list[dict[str, Any]]:
    text = (domain_folder / "manifest.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(params=("base", *EXPERTS))
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return SAMPLES / "checkpoints" / str(request.param)


@pytest.fixture(params=EXPERTS)
def expert(request: pytest.FixtureRequest) -> Path:
    return SAMPLES / "checkpoints" / str(request.param)


@pytest.fixture
def base() -> Path:
    return SAMPLES / "checkpoints" / "base"
