"""docs/study.md shows the tables that the stored results give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from study.choose import best_coefficient
from study.recipes import PLAIN, SCALED
from study.table import render, render_dev

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def results() -> dict[str, Any]:
    return dict(json.loads((DOCS / "study" / "results.json").read_text(encoding="ascii")))


def test_the_page_shows_the_table_that_the_stored_results_make(results: dict[str, Any]) -> None:
    assert render(results) in (DOCS / "study.md").read_text(encoding="utf-8")


def test_every_system_has_a_row_and_every_average_is_that_of_its_sets(
    results: dict[str, Any],
) -> None:
    systems = [row["system"] for row in results["rows"]]
    assert systems[:2] == ["base", "full-ft"]
    assert {*PLAIN, *SCALED} <= set(systems)
    for row in results["rows"]:
        rates = [found["wer"] for found in row["datasets"].values()]
        assert row["averages"]["full"]["macro"] == pytest.approx(sum(rates) / len(rates))
        assert len(rates) == len(results["rows"][0]["datasets"])
    assert len(set(systems)) == len(systems)


def test_the_coefficients_are_those_that_the_dev_sets_chose(results: dict[str, Any]) -> None:
    dev = json.loads((DOCS / "study" / "dev.json").read_text(encoding="ascii"))
    assert render_dev(dev) in (DOCS / "study.md").read_text(encoding="utf-8")
    for method in SCALED:
        first = next(row for row in results["rows"] if row["system"] == method)
        assert first["parameters"] == {"scaling_coefficient": best_coefficient(dev[method])}
