from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from app.reports.layout import content_security_policy
from app.reports.studies.page import study_page, table_html
from app.reports.studies.table import study_table
from tests.app.reports.studies import synthetic
from tests.app.reports.studies.synthetic import HOSTILE, facts, system
from tests.app.reports.test_page import Outline

RECIPE = {"method": "boosted_tsv_m", "note": HOSTILE}


@pytest.fixture(scope="module")
def page(document: dict[str, Any]) -> str:
    return study_page(document, "0.1", RECIPE)


def text_of(page: str) -> str:
    return " ".join(Outline(page).text.split())


def test_names_and_reasons_are_text(page: str) -> None:
    outline = Outline(page)
    assert "script" not in outline.tags
    assert outline.text.count("<script>") >= 6  # title, heading, rows, reason, points, recipe


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    outline = Outline(page)
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(outline.tags)
    names = {name for name, _ in outline.attributes}
    assert not {"src", "srcset", "style", "action"} & names
    assert ("content", content_security_policy()) in outline.attributes
    assert "url(" not in page


def test_the_verdict_comes_first(page: str) -> None:
    text = text_of(page)
    assert text.index("✓ Ship mrg_1") < text.index("What was asked") < text.index("Error rates")
    assert "5 used of 8, 3 left" in text
    assert "English avg: at most 0.5 points above the base" in text


def test_every_system_is_in_the_tables_and_early_ends_have_reasons(page: str, document) -> None:
    tables = text_of(table_html(document))
    for name in ("test", "development"):
        for row in document[name]["rows"]:
            title = row["label"] if row["number"] is None else f"#{row['number']} {row['method']}"
            assert title in tables
    assert "stopped at 1/4" in tables
    ended = text_of(page).split("Trials that ended early")[1]
    assert "english: 3.1 points above the base, at most 0.5 allowed" in ended


def test_tables_and_charts_have_names_for_those_who_hear_them(page: str) -> None:
    outline = Outline(page)
    assert outline.tags.count("table") == outline.tags.count("caption")
    # Two trade-offs (street, english), one method with several λ, one with importance.
    assert outline.tags.count("svg") == outline.attributes.count(("role", "img")) == 4
    assert outline.tags.count("th") == len([1 for name, _ in outline.attributes if name == "scope"])
    ids = [value for name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = {value for name, value in outline.attributes if name == "aria-labelledby"}
    assert named <= set(ids)


def test_the_front_joins_the_trials_that_none_is_better_than(document) -> None:
    def averages(number: int, x: float, y: float, **fields: Any) -> Any:
        return system("trial", "a", (x, x, y, 0.1), number=number, method="soup", **fields)

    trials = [
        averages(0, 0.05, 0.5),
        averages(1, 0.2, 0.3),
        averages(2, 0.4, 0.05),
        averages(3, 0.4, 0.5),
        averages(4, 0.0, 0.0, feasible=False),
    ]
    base = system("base", "base", (0.6, 0.6, 0.6, 0.1))
    shown = study_page(study_table(facts(outcome={}), [base, *trials], []), "0.1")
    chart = shown.split("<figcaption>ID avg against street<")[1].split("</figure>")[0]
    [front] = re.findall(r'<polyline class="front" points="([^"]*)"', chart)
    assert len(front.split()) == 5  # three trials, and a corner between two
    names = [label.split(":")[0] for label in re.findall(r"<li>([^<]*)</li>", chart)]
    assert sorted(names) == ["#0", "#1", "#2", "base"]


def test_a_trial_that_loops_does_not_press_the_others_together(document) -> None:
    loops = system("trial", "l", (1.0, 1.0, 1.0, 1.0), number=9, method="soup")
    shown = study_page(study_table(facts(), [*synthetic.on_development(), loops], []), "0.1")
    assert "1 with far higher rates not drawn." in text_of(shown)


def test_rates_are_joined_only_where_nothing_but_the_coefficient_differs() -> None:
    def swept(*betas: float) -> str:
        trials = [
            system(
                "trial", "a", (0.1 * n, 0.1, 0.1, 0.1), number=n, method="ties",
                values={"scaling_coefficient": 0.5 * n, "beta": beta},
            )
            for n, beta in enumerate(betas, start=1)
        ]  # fmt: skip
        return study_page(study_table(facts(outcome={}), trials, []), "0.1")

    assert 'class="joined"' in swept(0.1, 0.1, 0.1)
    assert 'class="joined"' not in swept(0.1, 0.2, 0.1)


@pytest.mark.parametrize(
    "changes", [{"outcome": {}, "objectives": ()}, {"outcome": {}}, {}], ids=["plain", "set", "all"]
)
def test_an_empty_study_is_a_page_too(changes: dict[str, Any]) -> None:
    made = facts(status="running", **changes)
    text = text_of(study_page(study_table(made, [], []), "0.1"))
    assert "Nothing has been decoded yet." in text
    waiting = system("trial", "a", (), number=0, status="running", fraction=0.0)
    assert "#0 a" in text_of(study_page(study_table(made, [waiting], []), "0.1"))


def test_a_study_that_ships_nothing_says_so_first(document) -> None:
    nothing = document | {"shipped": None, "reason": f"english: {HOSTILE}"}
    text = text_of(study_page(nothing, "0.1"))
    assert "✗ Ship nothing" in text
    assert f"english: {HOSTILE}" in text


def test_a_study_of_several_objectives_shows_them_against_each_other() -> None:
    made = facts(objectives=("telephone", "street"))
    shown = study_page(study_table(made, synthetic.on_development(), []), "0.1")
    assert "telephone against street" in shown
    renamed = [replace(one, method=None) for one in synthetic.on_development()]
    assert "#1 b" in text_of(study_page(study_table(made, renamed, []), "0.1"))
