"""How the page, the terminal and the exports write what a study's table holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from app.contract.evaluation import Group
from app.contract.states import FINAL
from app.reports.layout import chance
from app.reports.rate_table import SIGNIFICANT
from app.reports.rendering import AVERAGE_TITLES

SECTIONS = {"test": "Test", "development": "Development"}
DIFFERS, WORSE = "†", "‡"
LEGEND = (
    f"Error rates in percent with 95 % intervals. Best: the lowest of references and complete "
    f"trials. {DIFFERS} differs from the base, {WORSE} worse than the best of its column "
    f"(p < {SIGNIFICANT}: MAPSSWE for a set, paired bootstrap for an average)."
)
SECTION_NOTES = {
    "test": "p values among the kept merges are corrected by Holm's procedure.",
    "development": "These sets chose the trials, so the best of many look better here than they "
    "are; p values are not corrected.",
}
_SYMBOLS = {"scaling_coefficient": "λ", "scaling_coefficient_last": "λ_last", "beta": "β"}

Row = Mapping[str, Any]
Cell = Mapping[str, Any]


def title_of(row: Row) -> str:
    """Return a system's name; a trial's is its number and method."""
    if row["kind"] != "trial":
        return str(row["label"])
    return f"#{row['number']} {row['method'] or row['label']}"


def values_of(row: Row) -> str:
    """Return the searched parameters of a trial."""
    return ", ".join(f"{symbol_of(name)}={_value(one)}" for name, one in row["values"].items())


def symbol_of(parameter: str) -> str:
    """Return a parameter's name, with the field's symbol if it has one."""
    *before, last = parameter.split(".")
    return ".".join((*before, _SYMBOLS.get(last, last)))


def state_of(row: Row) -> str:
    """Return what a reader must know of a trial that is not complete, or not feasible."""
    if row["status"] in {"stopped", "running"}:
        return f"{row['status']} at {share(row['fraction'])}"
    if row["status"] == "failed":
        return "failed"
    return "misses a constraint" if row["feasible"] is False else ""


def share(fraction: float) -> str:
    """Return a share of the utterances as 1/4."""
    return str(Fraction(fraction).limit_denominator(64))


def figure(rate: float | None) -> str:
    """Return a rate in percent with one decimal, or a dash."""
    return "–" if rate is None else f"{100 * rate:.1f}".replace("-", "−")


def interval_of(cell: Cell) -> str:
    """Return the interval in brackets, or nothing."""
    found = cell["ci95"]
    return f"[{figure(found['low'])}–{figure(found['high'])}]" if found else ""


def marks_of(cell: Cell) -> str:
    """Return the marks of the legend."""
    found, best = cell["against_base"], cell["against_best"]
    worse = is_significant(best) and best["delta"] > 0
    return DIFFERS * is_significant(found) + WORSE * bool(worse)


def is_significant(difference: Mapping[str, Any] | None) -> bool:
    """Return whether a difference is more than chance, after correction where there is one."""
    p = p_of(difference)
    return p is not None and p < SIGNIFICANT


def p_of(difference: Mapping[str, Any] | None) -> float | None:
    """Return the p value: the corrected one where there is one."""
    if difference is None:
        return None
    corrected: float | None = difference["p_holm"]
    return difference["p"] if corrected is None else corrected


def cells_of(row: Row, columns: Sequence[Mapping[str, Any]]) -> list[Cell]:
    """Return a row's cells in the columns' order."""
    return [row[f"{column['kind']}s"][column["name"]] for column in columns]


def column_title(column: Mapping[str, Any]) -> str:
    """Return a column's title, with the metric if it is not the word error rate."""
    return f"{column['title']} (CER)" if column["metric"] == "cer" else str(column["title"])


def notes_of(section: str) -> str:
    """Return the legend of a section's table."""
    return f"{LEGEND} {SECTION_NOTES[section]}"


def counted(document: Mapping[str, Any]) -> str:
    """Return how many trials were looked at, and what became of them."""
    trials = document["trials"]
    parts = [f"{trials[one]} {one}" for one in ("complete", "stopped", "failed", "running")]
    shown = ", ".join(part for part in parts if not part.startswith("0 "))
    asked = trials["asked"]
    return f"{asked} trial{'' if asked == 1 else 's'} looked at{': ' if shown else ''}{shown}."


@dataclass(frozen=True)
class Verdict:
    """What to do and why; `state` is what the study's end means for the one who asked."""

    state: Literal["ship", "nothing", "open"]
    title: str
    evidence: tuple[str, ...]


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Return which merge to ship with its results, or why none is."""
    rows = _trials(document)
    winner = next((row for row in rows if row["winner"]), None)
    reason = (str(document["reason"]),) if document["reason"] else ()
    if document["shipped"]:
        name = f": {described(winner)}" if winner else ""
        evidence = (*reason, *_evidence(document, winner))
        return Verdict("ship", f"Ship {document['shipped']}{name}", evidence)
    if document["status"] in FINAL:
        ended = () if document["status"] == "succeeded" else (f"The study {_ended(document)}.",)
        best = (f"Best trial: {described(winner)}.",) if winner else ()
        evidence = (*ended, *reason, *best, *_evidence(document, winner))
        return Verdict("nothing", "Ship nothing", evidence)
    best_yet = winner or next(
        (row for row in rows if row["status"] == "complete" and row["feasible"] is not False), None
    )
    phase = f", {document['phase']}" if document["phase"] else ""
    so_far = (f"Best so far: {described(best_yet)}.",) if best_yet else ()
    return Verdict(
        "open",
        f"No verdict yet: the study is {document['status']}{phase}",
        (*reason, *so_far, *_evidence(document, best_yet)),
    )


def described(row: Row) -> str:
    """Return a trial's name and parameters."""
    values = values_of(row)
    return f"{title_of(row)} ({values})" if values else title_of(row)


def _ended(document: Mapping[str, Any]) -> str:
    return "failed" if document["status"] == "failed" else f"was {document['status']}"


def _trials(document: Mapping[str, Any]) -> list[Row]:
    for name in ("development", "test"):
        if document[name]:
            return [row for row in document[name]["rows"] if row["kind"] == "trial"]
    return []


def _evidence(document: Mapping[str, Any], row: Row | None) -> Iterator[str]:
    """Yield a sentence for each group of sets: on the test sets if the trial was measured there."""
    if row is None:
        return
    for name in SECTIONS:
        section = document[name] or {"rows": ()}
        found = [
            one
            for one in section["rows"]
            if one["kind"] == "trial" and one["number"] == row["number"]
        ]
        if found and section["columns"]:
            yield from _sentences(section, found[0], name)
            return


def _sentences(section: Mapping[str, Any], row: Row, name: str) -> Iterator[str]:
    titles = {one["key"]: title_of(one) for one in section["rows"]}
    order = get_args(Group)
    columns = [one for one in section["columns"] if _stands_for_group(section, one)]
    for column in sorted(columns, key=lambda one: order.index(one["group"])):
        cell = cells_of(row, [column])[0]
        if cell["rate"] is not None:
            parts = [_against_base(cell["against_base"]), _against_best(cell, titles)]
            rate = f"{figure(cell['rate'])} % {interval_of(cell)}".strip()
            shown = "; ".join((rate, ", ".join(part for part in parts if part))).removesuffix("; ")
            yield f"{SECTIONS[name]}, {column_title(column)}: {shown}."


def _stands_for_group(section: Mapping[str, Any], column: Mapping[str, Any]) -> bool:
    if column["kind"] == "average":
        return column["name"] in get_args(Group)
    return [one["group"] for one in section["sets"]].count(column["group"]) == 1


def _against_base(found: Mapping[str, Any] | None) -> str:
    if found is None or found["delta"] is None:
        return ""
    if not is_significant(found):
        return f"within chance of the base ({_points(found)})"
    side = "below" if found["delta"] < 0 else "above"
    return f"{side} the base ({_points(found)})"


def _against_best(cell: Cell, titles: Mapping[str, str]) -> str:
    if cell["best"]:
        return "the best of its column"
    found = cell["against_best"]
    if found is None or found["delta"] is None:
        return ""
    relation = "worse than" if is_significant(found) else "within chance of"
    return f"{relation} the best, {titles[found['system']]} ({_points(found)})"


def _points(found: Mapping[str, Any]) -> str:
    sign = "+" if found["delta"] > 0 else ""
    return f"{sign}{figure(found['delta'])}, {chance(p_of(found))}"


def constraint_text(constraint: Mapping[str, Any]) -> str:
    """Return a constraint as a sentence."""
    name = measure_title(str(constraint["set"]))
    parts = []
    if constraint.get("max_wer") is not None:
        parts.append(f"at most {figure(constraint['max_wer'])} %")
    if constraint.get("max_regression") is not None:
        against, most = constraint.get("against", "base"), constraint["max_regression"]
        against = "the base" if against == "base" else against
        parts.append(
            f"at most {figure(most)} points above {against}"
            if most >= 0
            else f"at least {figure(-most)} points below {against}"
        )
    return f"{name}: {' and '.join(parts)}"


def group_title(group: str) -> str:
    """Return a group's short name."""
    return AVERAGE_TITLES[group].removesuffix(" avg")


def measure_title(measure: str) -> str:
    """Return the title of `in_domain.macro`, or of a set."""
    group, _, kind = measure.partition(".")
    if group not in AVERAGE_TITLES:
        return measure
    return AVERAGE_TITLES[group] + (" (by words)" if kind == "micro" else "")


def budget_text(budget: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (unit, used and left) of the budget."""
    for unit, spent in budget.items():
        title = unit.replace("_", " ").capitalize()
        if not isinstance(spent, Mapping):
            yield title, _amount(spent)
            continue
        used, limit = spent.get("used", 0), spent.get("limit")
        left = (
            "" if limit is None else f" of {_amount(limit)}, {_amount(max(0, limit - used))} left"
        )
        yield title, f"{_amount(used)} used{left}"


def _amount(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
