from __future__ import annotations

import csv
import io
import re
from dataclasses import replace
from typing import Any

import pytest

from app.reports.studies.formats import CSV_COLUMNS, as_csv, as_latex, as_markdown
from app.reports.studies.table import study_table
from app.reports.studies.terminal import render_study
from app.reports.studies.wording import (
    budget_text,
    constraint_text,
    is_significant,
    title_of,
    verdict,
)
from tests.app.reports.studies.synthetic import HOSTILE, facts, system

EMPTY = facts(name=None, status="running", phase="searching", outcome={}, budget={}, importance={})


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for name in ("test", "development") for row in document[name]["rows"]]


def test_csv_has_every_cell_of_every_row(document) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(document))))
    for name in ("test", "development"):
        for row in document[name]["rows"]:
            mine = [one for one in read if (one["section"], one["label"]) == (name, row["label"])]
            cells = [*row["sets"].items(), *row["averages"].items()]
            assert [one["name"] for one in mine] == [name for name, _ in cells]
            for one, (_, cell) in zip(mine, cells, strict=True):
                assert one["rate"] == ("" if cell["rate"] is None else str(cell["rate"]))
                assert one["best"] == str(cell["best"])
                base = cell["against_base"] or {"p": None}
                assert one["base_p"] == ("" if base["p"] is None else str(base["p"]))
    assert tuple(read[0]) == CSV_COLUMNS


def test_markdown_has_every_row_with_as_many_cells_as_columns(document) -> None:
    lines = [line for line in as_markdown(document).splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(one) for one in cells} == {2 + len(document["test"]["columns"])}
    assert len(lines) == len(rows_of(document)) + 4  # two headers, two rules
    winner = next(one for one in cells if one[0] == " #1 boosted_tsv_m ")
    assert winner[1] == " λ=1, β=0.3 "
    assert re.fullmatch(r" (\*\*)?\d+\.\d(\*\*)?[†‡]* \[\d+\.\d–\d+\.\d\] ", winner[2])
    assert sum("(stopped at 1/4)" in one[0] for one in cells) == 1


def test_latex_has_every_row_with_as_many_cells_as_columns(document) -> None:
    latex = as_latex(document)
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    cells = [re.split(r"(?<!\\)&", line) for line in rows]
    assert {len(one) for one in cells} == {2 + len(document["test"]["columns"])}
    assert len(rows) == len(rows_of(document)) + 2
    for rule in ("toprule", "bottomrule"):
        assert latex.count(rf"\{rule}") == 2
    best = sum(
        cell["best"]
        for name in ("test", "development")
        for row in document[name]["rows"]
        for column in document[name]["columns"]
        if (cell := row[f"{column['kind']}s"][column["name"]])
    )
    assert latex.count(r"\textbf{") == best


def test_names_are_text_in_latex_and_markdown_too(document) -> None:
    latex = as_latex(document)
    shown = next(line for line in latex.splitlines() if "alert" in line and r"\\" in line)
    name = shown.split(" &  & ")[0]
    assert name == (
        r"\textless{}script\textgreater{}alert('x')\textless{}/script\textgreater{} \& "
        r"\textbackslash{}textbf\{50\%\} \$\_\#\textasciicircum{}\textasciitilde{} "
        r"\textbar{} {*}a{*} `b` {[}c{]}"
    )
    markdown = as_markdown(document)
    assert "<script" not in markdown
    assert r"\| \*a\* \`b\` [c]" in markdown
    hostile = system("expert", "[x](javascript:1)\n| new | row", (0.1,))
    linked = as_markdown(study_table(EMPTY, [hostile], []))
    assert r"| [x\](javascript:1) \| new \| row |" in linked


def test_a_comment_in_latex_stays_one_line() -> None:
    made = facts(outcome={"shipped": None, "reason": None, "winner": 1})
    trial = system("trial", "a", (0.1,), number=1, method="x\n\\input{/etc/passwd}")
    latex = as_latex(study_table(made, [trial], []))
    assert not any(line.startswith(r"\input") for line in latex.splitlines())


def test_marks_follow_the_corrected_p_value() -> None:
    assert is_significant({"p": 0.03, "p_holm": None})
    assert not is_significant({"p": 0.03, "p_holm": 0.06})
    assert not is_significant({"p": None, "p_holm": None})
    assert not is_significant(None)


def test_the_verdict_says_what_to_ship_with_its_results_on_test(document) -> None:
    found = verdict(document)
    assert (found.state, found.title) == ("ship", "Ship mrg_1: #1 boosted_tsv_m (λ=1, β=0.3)")
    assert [line.split(":")[0] for line in found.evidence] == [
        "Test, ID avg", "Test, street", "Test, english",
    ]  # fmt: skip
    assert "below the base" in found.evidence[0]


def test_a_study_that_ships_nothing_says_why(document) -> None:
    reason = "No trial keeps english at most 0.5 points above the base."
    nothing = document | {"shipped": None, "winner": None, "reason": reason}
    assert verdict(nothing).title == "Ship nothing"
    assert verdict(nothing).evidence[0] == reason
    cancelled = verdict(nothing | {"status": "cancelled"})
    assert cancelled.evidence[0] == "The study was cancelled."
    running = verdict(document | {"shipped": None, "winner": None, "status": "running"})
    assert running.state == "open"
    assert "Best so far: #1 boosted_tsv_m" in running.evidence[0]


def test_the_terminal_shows_the_best_trials_and_counts_the_others(document) -> None:
    shown = render_study(document, most=2)
    assert "#1 boosted_tsv_m" in shown
    assert "#3 boosted_tsv_m" not in shown
    assert "and 3 more trials" in shown
    assert "5 trials looked at: 3 complete, 1 stopped, 1 failed." in shown
    assert "Ship mrg_1" in shown
    hostile = render_study(study_table(EMPTY, [system("expert", "a\x1b[31m\nb", (0.1,))], []))
    assert "\x1b" not in hostile
    assert "\N{REPLACEMENT CHARACTER}[31m b" in hostile


@pytest.mark.parametrize("write", [as_csv, as_markdown, as_latex, render_study])
def test_an_empty_study_can_be_written(write) -> None:
    assert write(study_table(EMPTY, [], []))
    assert write(study_table(EMPTY, [system("trial", "a", (), number=0, status="running")], []))


def test_constraints_and_budgets_are_sentences() -> None:
    assert constraint_text({"set": "english", "max_regression": 0.005, "max_wer": 0.1}) == (
        "English avg: at most 10.0 % and at most 0.5 points above the base"
    )
    assert constraint_text({"set": "dev-1", "max_regression": -0.01, "against": "full-ft"}) == (
        "dev-1: at least 1.0 points below full-ft"
    )
    budget = {"trials": {"used": 5, "limit": 8}, "audio_seconds": {"used": 1234.5, "limit": None}}
    assert list(budget_text(budget)) == [
        ("Trials", "5 used of 8, 3 left"),
        ("Audio seconds", "1,234 used"),
    ]


def test_a_trial_without_a_method_is_called_by_its_label() -> None:
    row = study_table(facts(), [replace(system("trial", HOSTILE, (), number=7))], [])
    assert title_of(row["development"]["rows"][0]) == f"#7 {HOSTILE}"
