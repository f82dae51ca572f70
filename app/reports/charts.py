"""SVG charts of error rates: bars with intervals, the trade-off of two averages, curves.

The page's style sheet sets colours, dark mode and print; sizes suit a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement, tostring

from app.reports.labels import place_labels, width_of

WIDTH = 420.0
_LEFT, _RIGHT = 8.0, 14.0
_BAR, _ROW = 12.0, 38.0
# Height of a plot of points.
_HEIGHT = 400.0
_TICKS = 5
# Smallest distance between ticks: a tenth of a percent.
_LEAST_STEP = 0.001
# Characters of a label that fit on a bar's row and at a point.
_LONGEST_BAR, _LONGEST_POINT = 44, 30


@dataclass(frozen=True)
class Bar:
    """A system's rate with its interval, as fractions; None if there is none.

    `parts` are substitutions, deletions and insertions, which add up to the rate.
    """

    label: str
    rate: float | None
    low: float | None = None
    high: float | None = None
    is_merge: bool = False
    parts: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class ChartPoint:
    """A system in a plot of points, labelled unless not `is_named`.

    `kind` is "merge" (the one that matters), "other", "base", "expert", "reference", or "cross" for
    a trial that does not count.
    """

    label: str
    x: float
    y: float
    kind: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    is_named: bool = field(default=True, kw_only=True)

    @property
    def described(self) -> str:
        """The point in words."""
        sides = ((self.x, self.x_interval), (self.y, self.y_interval))
        return f"{self.label}: {' and '.join(_percent(*side) for side in sides)}"


@dataclass(frozen=True)
class Axis:
    """Maps fractions from `low` to `high` to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def make_axis(values: Sequence[float], start: float, end: float, *, zero: bool) -> Axis:
    """Return an axis over the values (and 0, if `zero`) that ends on round numbers."""
    low, high = (0.0 if zero else min(values)), max(values)
    step = _round_step((high - low) / _TICKS)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def bars(bars: Sequence[Bar], title: str) -> str:
    """Return horizontal bars from 0, one row per system, with intervals as whiskers."""
    known = [value for bar in bars for value in (bar.rate, bar.high) if value is not None]
    axis = make_axis(known or [0.0], _LEFT, WIDTH - _RIGHT, zero=True)
    bottom = _ROW * len(bars) + 4
    svg = _svg(bottom + 22, title, "; ".join(map(_described, bars)))
    for tick in axis.ticks:
        _line(svg, "grid", axis(tick), 0, axis(tick), bottom)
        _text(svg, "tick", axis(tick), bottom + 16, f"{100 * tick:g}", anchor="middle")
    for number, bar in enumerate(bars):
        top = _ROW * number
        row = SubElement(svg, "g", {"class": "bar merge" if bar.is_merge else "bar"})
        _text(row, "label", _LEFT, top + 15, _short(bar.label, _LONGEST_BAR))
        value = "no rate" if bar.rate is None else f"{100 * bar.rate:.2f}"
        _text(row, "value", WIDTH - _RIGHT, top + 15, value, anchor="end")
        if bar.rate is not None:
            _bar(row, axis, bar, top + 20)
        if bar.low is not None and bar.high is not None:
            _whisker(row, axis(bar.low), axis(bar.high), top + 20 + _BAR / 2)
    return tostring(svg, encoding="unicode")


def trade_off(
    points: Sequence[ChartPoint],
    x_title: str,
    y_title: str,
    title: str,
    *,
    front: Sequence[tuple[float, float]] = (),
) -> str:
    """Return a scatter plot, where better is left and below.

    A point without room for its label shows its number in `points`, from 1. `front` are points that
    no other is better than in both; they are joined by steps.
    """
    xs = [x for p in points for x in (p.x, *(p.x_interval or ()))]
    ys = [y for p in points for y in (p.y, *(p.y_interval or ()))]
    plane = _plane(xs, ys, 100)
    svg = _svg(_HEIGHT, title, "; ".join(p.described for p in points))
    _grid(svg, plane, x_title, y_title)
    for point in points:
        _cross(SubElement(svg, "g", {"class": f"cross {point.kind}"}), point, plane)
    ordered = sorted(front)
    corners = [ordered[:1], *([(x, up), (x, y)] for (_, up), (x, y) in pairwise(ordered))]
    _path(svg, "front", plane, [corner for step in corners for corner in step])
    _draw(svg, plane, points)
    return tostring(svg, encoding="unicode")


def curve(
    points: Sequence[ChartPoint],
    x_title: str,
    y_title: str,
    title: str,
    *,
    level: tuple[str, float] | None = None,
    is_joined: bool = False,
) -> str:
    """Return rates (y) against the values of a parameter (x).

    `level` is another system's rate, drawn as a line across. `is_joined` joins the points that are
    no crosses: where nothing but the parameter differs.
    """
    rates = [point.y for point in points]
    described = [f"{point.label}: {100 * point.y:.2f} at {point.x:g}" for point in points]
    if level:
        rates.append(level[1])
        described.append(f"{level[0]}: {100 * level[1]:.2f}")
    plane = _plane([point.x for point in points], rates, 1)
    svg = _svg(_HEIGHT, title, "; ".join(described))
    _grid(svg, plane, x_title, y_title)
    if level:
        across, y = plane.across, plane.up(level[1])
        _line(svg, "level", across.start, y, across.end, y)
    if is_joined:
        _path(svg, "joined", plane, sorted((p.x, p.y) for p in points if p.kind != "cross"))
    _draw(svg, plane, points)
    return tostring(svg, encoding="unicode")


@dataclass(frozen=True)
class _Plane:
    """Two axes; `times` is what the ticks across are multiplied with (100: percent)."""

    across: Axis
    up: Axis
    times: int

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.across(x), self.up(y)


def _plane(xs: Sequence[float], ys: Sequence[float], times: int) -> _Plane:
    up = make_axis(ys, _HEIGHT - 44, 14, zero=False)
    # The axis title is left of the widest tick.
    left = 30 + max(width_of(f"{100 * tick:g}") for tick in up.ticks)
    return _Plane(make_axis(xs, left, WIDTH - _RIGHT, zero=False), up, times)


def _grid(svg: Element, plane: _Plane, x_title: str, y_title: str) -> None:
    across, up = plane.across, plane.up
    for tick in across.ticks:
        _line(svg, "grid", across(tick), up.end, across(tick), up.start)
        value = f"{plane.times * tick:g}"
        _text(svg, "tick", across(tick), up.start + 16, value, anchor="middle")
    for tick in up.ticks:
        _line(svg, "grid", across.start, up(tick), across.end, up(tick))
        _text(svg, "tick", across.start - 6, up(tick) + 4, f"{100 * tick:g}", anchor="end")
    _text(svg, "axis", across.end, _HEIGHT - 8, f"{x_title} →", anchor="end")
    turned = _text(svg, "axis", -up.end, 12, f"{y_title} →", anchor="end")
    turned.set("transform", "rotate(-90)")


def _draw(svg: Element, plane: _Plane, points: Sequence[ChartPoint]) -> None:
    """Draw the points, each kind with its own mark, and their labels."""
    places = [plane(p.x, p.y) for p in points]
    frame = (plane.across.start, plane.up.end, plane.across.end, plane.up.start)
    texts = [_short(p.label, _LONGEST_POINT) if p.is_named else "" for p in points]
    labels = place_labels(places, texts, frame)
    for point, (x, y), label in zip(points, places, labels, strict=True):
        group = SubElement(svg, "g", {"class": f"point {point.kind}"})
        _mark(group, point.kind, x, y)
        if point.is_named:
            _text(group, "label", label.x, label.y, label.text)


def _path(svg: Element, kind: str, plane: _Plane, corners: Sequence[tuple[float, float]]) -> None:
    if len(corners) > 1:
        places = " ".join(f"{x:.2f},{y:.2f}" for x, y in (plane(*corner) for corner in corners))
        SubElement(svg, "polyline", {"class": kind, "points": places})


def _svg(height: float, title: str, description: str) -> Element:
    box = f"0 0 {WIDTH:g} {height:g}"
    svg = Element("svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": box, "role": "img"})
    svg.set("aria-label", f"{title}. {description}")
    return svg


def _bar(parent: Element, axis: Axis, bar: Bar, top: float) -> None:
    """Draw the bar, in three shades if it has parts."""
    assert bar.rate is not None
    kinds = ("substitutions", "deletions", "insertions") if bar.parts else ("rate",)
    start = 0.0
    for kind, length in zip(kinds, bar.parts or (bar.rate,), strict=True):
        places = {"x": axis(start), "y": top, "width": axis(length) - axis(0), "height": _BAR}
        SubElement(parent, "rect", {"class": kind, **_numbers(**places)})
        start += length


def _cross(parent: Element, point: ChartPoint, plane: _Plane) -> None:
    """Draw the point's intervals as crossed lines."""
    x, y = plane(point.x, point.y)
    if point.x_interval:
        low, high = map(plane.across, point.x_interval)
        _line(parent, "interval", low, y, high, y)
    if point.y_interval:
        low, high = map(plane.up, point.y_interval)
        _line(parent, "interval", x, low, x, high)


def _mark(parent: Element, kind: str, x: float, y: float) -> None:
    """Draw the kind's own shape, since not everybody can tell colours apart."""
    if kind == "base":
        SubElement(parent, "rect", _numbers(x=x - 5, y=y - 5, width=10, height=10))
    elif kind == "expert":
        corners = ((x, y - 6.5), (x + 6, y + 4.5), (x - 6, y + 4.5))
        _polygon(parent, corners)
    elif kind == "reference":
        _polygon(parent, ((x, y - 7), (x + 7, y), (x, y + 7), (x - 7, y)))
    elif kind == "cross":
        _line(parent, "stroke", x - 4, y - 4, x + 4, y + 4)
        _line(parent, "stroke", x - 4, y + 4, x + 4, y - 4)
    else:
        SubElement(parent, "circle", _numbers(cx=x, cy=y, r=7 if kind == "merge" else 5))


def _polygon(parent: Element, corners: Sequence[tuple[float, float]]) -> None:
    places = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
    SubElement(parent, "polygon", {"points": places})


def _whisker(parent: Element, low: float, high: float, y: float) -> None:
    for place in (low, high):
        _line(parent, "whisker", place, y - 5, place, y + 5)
    _line(parent, "whisker", low, y, high, y)


def _line(parent: Element, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
    SubElement(parent, "line", {"class": kind, **_numbers(x1=x1, y1=y1, x2=x2, y2=y2)})


def _text(
    parent: Element, kind: str, x: float, y: float, text: str, *, anchor: str = "start"
) -> Element:
    made = SubElement(parent, "text", {"class": kind, "text-anchor": anchor, **_numbers(x=x, y=y)})
    made.text = text
    return made


def _numbers(**places: float) -> dict[str, str]:
    return {name: f"{value:.2f}" for name, value in places.items()}


def _short(label: str, longest: int) -> str:
    return label if len(label) <= longest else label[: longest - 1] + "…"


def _described(bar: Bar) -> str:
    if bar.rate is None:
        return f"{bar.label}: no rate"
    if bar.low is None or bar.high is None:
        return f"{bar.label}: {_percent(bar.rate, None)}"
    return f"{bar.label}: {_percent(bar.rate, (bar.low, bar.high))}"


def _percent(rate: float, interval: tuple[float, float] | None) -> str:
    """Return a rate and its interval in words."""
    if interval is None:
        return f"{100 * rate:.2f}"
    low, high = interval
    return f"{100 * rate:.2f} (95 % interval {100 * low:.2f} to {100 * high:.2f})"


def _round_step(rough: float) -> float:
    """Return the next of 1, 2, 2.5 and 5 times a power of ten."""
    rough = max(rough, _LEAST_STEP)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= rough * (1 - 1e-9))
