"""A study's HTML page: what to ship and why, then the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from app.reports.charts import Bar, ChartPoint, bars, curve, trade_off
from app.reports.layout import render
from app.reports.rendering import AVERAGE_TITLES
from app.reports.studies import wording
from app.reports.studies.wording import Row

_COEFFICIENT = "scaling_coefficient"
_AGAINST = ("out_of_domain", "english", "multilingual")
# A rate this many times the highest of base, experts and references is left out of the plots,
# where it would press all others together.
_FAR = 1.25

Column = Mapping[str, Any]


@dataclass(frozen=True)
class Chart:
    """A drawing, and how many trials are too far off to be drawn."""

    title: str
    svg: Markup
    left_out: int = 0
    points: Sequence[ChartPoint] = ()


def study_page(
    document: Mapping[str, Any], version: str, recipe: Mapping[str, Any] | None = None
) -> str:
    """Return the page of a study's table; `recipe` is the winner's, as of a merge."""
    rows = (document["development"] or {"rows": ()})["rows"]
    trials = [row for row in rows if row["kind"] == "trial"]
    return render(
        "study.html",
        document=document,
        version=version,
        verdict=wording.verdict(document),
        words=wording,
        recipe=recipe and json.dumps(recipe, indent=2, ensure_ascii=False),
        trade_offs=list(_trade_offs(document)),
        curves=list(_curves(document)),
        importance=list(_importance(document)),
        stopped=[row for row in trials if row["status"] in {"stopped", "failed"}],
    )


def table_html(document: Mapping[str, Any]) -> str:
    """Return the tables alone, to be put into another page."""
    return render("study_table.html", document=document, words=wording)


def _trade_offs(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield a plot of the in-domain average, or the first objective, against each other average."""
    section = document["development"]
    if not section:
        return
    measured = [_measure(section, objective) for objective in document["objectives"]]
    first, *others = measured or [None]
    in_domain = _average(section, "in_domain")
    pairs = [(in_domain or first, _average(section, name)) for name in _AGAINST]
    pairs += [(first, other) for other in others]
    drawn = set()
    for x, y in pairs:
        if x and y and x != y and (x["title"], y["title"]) not in drawn:
            drawn.add((x["title"], y["title"]))
            chart = _trade_off(section["rows"], x, y)
            if chart:
                yield chart


def _trade_off(rows: Sequence[Row], x: Column, y: Column) -> Chart | None:
    whole = [row for row in rows if row["status"] == "complete"]
    shown = [row for row in whole if all(_rate(row, one) is not None for one in (x, y))]
    near = [row for row in shown if all(_is_near(row, rows, one) for one in (x, y))]
    if not near:
        return None
    places = {row["key"]: (_known(row, x), _known(row, y)) for row in near}
    able = [row for row in near if row["kind"] == "trial" and row["feasible"] is not False]
    front = _front({row["key"]: places[row["key"]] for row in able})
    points = [
        _point(
            row,
            *places[row["key"]],
            counts=row["feasible"] is not False,
            is_named=row["kind"] != "trial" or row["kept"] or row["key"] in front,
        )
        for row in near
    ]
    # Numbers, which stand for labels without room, count from the first of those with a name.
    points.sort(key=lambda point: not point.is_named)
    across, up = (wording.column_title(one) for one in (x, y))
    title = f"{across} against {up}"
    svg = trade_off(points, across, up, f"{title}, in percent", front=list(front.values()))
    named = [point for point in points if point.is_named]
    return Chart(title, Markup(svg), len(shown) - len(near), named)


def _front(places: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """Return the places that no other is better than, in both or in one with equality."""
    found: dict[str, tuple[float, float]] = {}
    lowest = float("inf")
    for key, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        if y < lowest:
            found[key], lowest = (x, y), y
    return found


def _curves(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Yield the first objective against λ, for each method with several values of it."""
    section = document["development"]
    if not section or not document["objectives"]:
        return
    column = _measure(section, document["objectives"][0])
    if column is None:
        return
    rows = [row for row in section["rows"] if _rate(row, column) is not None]
    swept: dict[str, list[Row]] = {}
    for row in rows:
        if isinstance(row["values"].get(_COEFFICIENT), int | float):
            swept.setdefault(row["method"] or row["label"], []).append(row)
    for method, mine in swept.items():
        near = [row for row in mine if _is_near(row, rows, column)]
        if len({row["values"][_COEFFICIENT] for row in near}) > 1:
            base = next((_known(row, column) for row in rows if row["kind"] == "base"), None)
            yield Chart(method, _curve(method, near, column, base), len(mine) - len(near))


def _curve(method: str, rows: Sequence[Row], column: Column, base: float | None) -> Markup:
    """Return the plot of a method's trials, which are in order from the best."""
    whole = [row for row in rows if row["status"] == "complete"]
    others = {json.dumps({**row["values"], _COEFFICIENT: None}) for row in whole}
    points = [
        _point(
            row,
            float(row["values"][_COEFFICIENT]),
            _known(row, column),
            counts=row["status"] == "complete",
            is_named=row["kept"] or row in whole[:1],
        )
        for row in rows
    ]
    title = wording.column_title(column)
    drawn = curve(
        points,
        "λ",
        title,
        f"{title} of {method} by λ",
        level=None if base is None else ("base", base),
        is_joined=len(others) < 2,
    )
    return Markup(drawn)


def _importance(document: Mapping[str, Any]) -> Iterator[Chart]:
    for method, shares in document["importance"].items():
        if shares:
            ordered = sorted(shares.items(), key=lambda item: -item[1])
            shown = [Bar(wording.symbol_of(name), value) for name, value in ordered]
            yield Chart(method, Markup(bars(shown, f"What mattered in {method}, in percent")))


def _point(row: Row, x: float, y: float, *, counts: bool, is_named: bool) -> ChartPoint:
    """Return a system's point; a trial that does not count is a cross."""
    if row["kind"] != "trial":
        return ChartPoint(wording.title_of(row), x, y, row["kind"], is_named=is_named)
    kind = "merge" if row["winner"] else "other" if counts else "cross"
    return ChartPoint(f"#{row['number']}", x, y, kind, is_named=is_named)


def _is_near(row: Row, rows: Sequence[Row], column: Column) -> bool:
    known = [
        rate
        for one in rows
        if one["kind"] != "trial" or one["winner"]
        if (rate := _rate(one, column)) is not None
    ]
    return not known or _known(row, column) <= _FAR * max(known)


def _measure(section: Mapping[str, Any], objective: str) -> Column | None:
    """Return the column of an objective; of an average by words, the average by sets."""
    for one in section["sets"]:
        if one["name"] == objective:
            return {**one, "kind": "set", "title": objective}
    return _average(section, objective.partition(".")[0])


def _average(section: Mapping[str, Any], name: str) -> Column | None:
    """Return the column of an average, with its set's title if it is over a single one."""
    if not any(row["averages"].get(name, {}).get("rate") is not None for row in section["rows"]):
        return None
    sets = [one for one in section["sets"] if one["group"] == name]
    if len(sets) == 1:
        return {**sets[0], "kind": "set", "title": sets[0]["name"]}
    return {"kind": "average", "name": name, "title": AVERAGE_TITLES[name], "metric": None}


def _rate(row: Row, column: Column) -> float | None:
    rate: float | None = wording.cells_of(row, [column])[0]["rate"]
    return rate


def _known(row: Row, column: Column) -> float:
    rate = _rate(row, column)
    assert rate is not None
    return rate
