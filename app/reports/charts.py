"""SVG charts of error rates: bars with intervals, and the trade-off of two averages.

The page's style sheet sets colours, dark mode and print; sizes suit a phone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

from app.reports.labels import place_labels, width_of

WIDTH = 420.0
_LEFT, _RIGHT = 8.0, 14.0
_BAR, _ROW = 12.0, 38.0
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
    """A system in the trade-off; `kind` is "merge" (this one), "other", "base" or "expert"."""

    label: str
    x: float
    y: float
    kind: str
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None

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


def trade_off(points: Sequence[ChartPoint], x_title: str, y_title: str, title: str) -> str:
    """Return a scatter plot, where better is left and below.

    A point without room for its label shows its number in `points`, from 1.
    """
    height = 400.0
    xs = [x for p in points for x in (p.x, *(p.x_interval or ()))]
    ys = [y for p in points for y in (p.y, *(p.y_interval or ()))]
    up = make_axis(ys, height - 44, 14, zero=False)
    # The axis title is left of the widest tick.
    left = 30 + max(width_of(f"{100 * tick:g}") for tick in up.ticks)
    across = make_axis(xs, left, WIDTH - _RIGHT, zero=False)
    svg = _svg(height, title, "; ".join(p.described for p in points))
    for tick in across.ticks:
        _line(svg, "grid", across(tick), up.end, across(tick), up.start)
        _text(svg, "tick", across(tick), up.start + 16, f"{100 * tick:g}", anchor="middle")
    for tick in up.ticks:
        _line(svg, "grid", across.start, up(tick), across.end, up(tick))
        _text(svg, "tick", across.start - 6, up(tick) + 4, f"{100 * tick:g}", anchor="end")
    _text(svg, "axis", across.end, height - 8, f"{x_title} →", anchor="end")
    turned = _text(svg, "axis", -up.end, 12, f"{y_title} →", anchor="end")
    turned.set("transform", "rotate(-90)")
    for point in points:
        _cross(SubElement(svg, "g", {"class": f"cross {point.kind}"}), point, across, up)
    places = [(across(p.x), up(p.y)) for p in points]
    frame = (across.start, up.end, across.end, up.start)
    labels = place_labels(places, [_short(p.label, _LONGEST_POINT) for p in points], frame)
    for point, (x, y), label in zip(points, places, labels, strict=True):
        group = SubElement(svg, "g", {"class": f"point {point.kind}"})
        _mark(group, point.kind, x, y)
        _text(group, "label", label.x, label.y, label.text)
    return tostring(svg, encoding="unicode")


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


def _cross(parent: Element, point: ChartPoint, across: Axis, up: Axis) -> None:
    """Draw the point's intervals as crossed lines."""
    x, y = across(point.x), up(point.y)
    if point.x_interval:
        low, high = map(across, point.x_interval)
        _line(parent, "interval", low, y, high, y)
    if point.y_interval:
        low, high = map(up, point.y_interval)
        _line(parent, "interval", x, low, x, high)


def _mark(parent: Element, kind: str, x: float, y: float) -> None:
    """Draw the kind's own shape, since not everybody can tell colours apart."""
    if kind == "base":
        SubElement(parent, "rect", _numbers(x=x - 5, y=y - 5, width=10, height=10))
    elif kind == "expert":
        corners = ((x, y - 6.5), (x + 6, y + 4.5), (x - 6, y + 4.5))
        SubElement(parent, "polygon", {"points": " ".join(f"{a:.2f},{b:.2f}" for a, b in corners)})
    else:
        SubElement(parent, "circle", _numbers(cx=x, cy=y, r=7 if kind == "merge" else 5))


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
