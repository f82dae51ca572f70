from __future__ import annotations

from itertools import combinations
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.reports.charts import WIDTH, Bar, ChartPoint, bars, curve, make_axis, trade_off
from app.reports.labels import place_labels, width_of

SVG = "{http://www.w3.org/2000/svg}"
RATES = st.floats(0, 3)
BARS = st.lists(
    st.builds(
        lambda label, three: Bar(label, sorted(three)[1], sorted(three)[0], sorted(three)[2]),
        st.text(st.characters(codec="ascii", categories=("L", "N", "P")), max_size=80),
        st.tuples(RATES, RATES, RATES),
    ),
    min_size=1,
    max_size=6,
)
POINTS = st.lists(
    st.builds(
        ChartPoint, st.text("abcλ=1.", min_size=1, max_size=40), RATES, RATES,
        st.sampled_from(["merge", "other", "base", "expert"]),
    ),
    min_size=1, max_size=25,
)  # fmt: skip


def number(element: Element, name: str) -> float:
    return float(element.attrib[name])


def classed(svg: Element, name: str) -> list[Element]:
    return [one for one in svg.iter() if name in one.get("class", "").split()]


@given(BARS)
def test_bars_are_as_long_as_their_rates(given_bars: list[Bar]) -> None:
    svg = fromstring(bars(given_bars, "title"))
    lengths = [number(rect, "width") for rect in svg.iter(f"{SVG}rect")]
    longest = max(bar.rate for bar in given_bars)
    for bar, length in zip(given_bars, lengths, strict=True):
        if longest > 1e-6:
            assert length == pytest.approx(max(lengths) * bar.rate / longest, abs=0.02)


@given(BARS)
def test_intervals_are_on_the_axis_and_around_the_end_of_their_bar(given_bars: list[Bar]) -> None:
    svg = fromstring(bars(given_bars, "title"))
    ticks = [number(tick, "x") for tick in classed(svg, "tick")]
    for row in classed(svg, "bar"):
        rect = row.find(f"{SVG}rect")
        end = number(rect, "x") + number(rect, "width")
        *_, whisker = classed(row, "whisker")
        low, high = number(whisker, "x1"), number(whisker, "x2")
        assert low - 0.02 <= end <= high + 0.02
        assert ticks[0] - 0.01 <= low <= high <= ticks[-1] + 0.01 < WIDTH


@given(BARS)
def test_every_bar_has_its_name_and_its_number(given_bars: list[Bar]) -> None:
    svg = fromstring(bars(given_bars, "title"))
    for row, bar in zip(classed(svg, "bar"), given_bars, strict=True):
        label, value = (text.text or "" for text in row.iter(f"{SVG}text"))
        assert label == bar.label or (label[:-1] == bar.label[:43] and label[-1] == "…")
        assert value == f"{100 * bar.rate:.2f}"
        assert f"{bar.label}: {value}" in svg.attrib["aria-label"]


@given(POINTS)
def test_every_point_has_a_label_in_the_drawing(points: list[ChartPoint]) -> None:
    svg = fromstring(trade_off(points, "x", "y", "title"))
    groups = classed(svg, "point")
    for place, (point, group) in enumerate(zip(points, groups, strict=True), start=1):
        [label] = classed(group, "label")
        assert label.text in {point.label, point.label[:29] + "…", str(place)}
        assert 0 <= number(label, "x") <= WIDTH
        assert point.label in svg.attrib["aria-label"]


@given(st.tuples(RATES, RATES, RATES))
def test_the_parts_of_a_bar_add_up_to_it(parts: tuple[float, float, float]) -> None:
    svg = fromstring(bars([Bar("a", sum(parts), parts=parts)], "title"))
    rects = list(svg.iter(f"{SVG}rect"))
    assert [one.get("class") for one in rects] == ["substitutions", "deletions", "insertions"]
    end = number(rects[0], "x")
    for rect in rects:
        assert number(rect, "x") == pytest.approx(end, abs=0.02)
        end += number(rect, "width")
    [whole] = fromstring(bars([Bar("a", sum(parts))], "title")).iter(f"{SVG}rect")
    assert end - number(rects[0], "x") == pytest.approx(number(whole, "width"), abs=0.05)


def test_intervals_cross_at_their_point_and_lie_within_the_axes() -> None:
    points = [
        ChartPoint("a", 0.2, 0.3, "merge", (0.1, 0.35), (0.05, 0.9)),
        ChartPoint("b", 0.25, 0.3, "other"),
    ]
    svg = fromstring(trade_off(points, "x", "y", "title"))
    [circle, _] = svg.iter(f"{SVG}circle")
    across, up = classed(svg, "interval")
    assert number(across, "y1") == number(across, "y2") == number(circle, "cy")
    assert number(up, "x1") == number(up, "x2") == number(circle, "cx")
    assert number(across, "x1") < number(circle, "cx") < number(across, "x2")
    assert number(up, "y1") > number(circle, "cy") > number(up, "y2")  # SVG counts downwards
    lines = [(number(line, "x1"), number(line, "y1")) for line in classed(svg, "grid")]
    assert min(x for x, _ in lines) <= number(across, "x1")
    assert min(y for _, y in lines) <= number(up, "y2")
    assert "a: 20.00 (95 % interval 10.00 to 35.00) and 30.00" in svg.attrib["aria-label"]
    assert "b: 25.00 and 30.00" in svg.attrib["aria-label"]


@given(st.lists(RATES, min_size=1, max_size=5))
def test_the_axis_title_is_left_of_every_tick(rates: list[float]) -> None:
    points = [ChartPoint("a", rate, rate, "other") for rate in rates]
    svg = fromstring(trade_off(points, "x", "y", "title"))
    turned = next(one for one in classed(svg, "axis") if one.get("transform"))
    right_edge = number(turned, "y") + 4  # it is turned by 90 degrees; letters hang below the line
    for tick in classed(svg, "tick"):
        if tick.get("text-anchor") == "end":
            assert number(tick, "x") - width_of(tick.text or "") > right_edge


def test_points_lie_where_their_rates_say() -> None:
    points = [
        ChartPoint("a", 0.1, 0.3, "merge"),
        ChartPoint("b", 0.2, 0.2, "other"),
        ChartPoint("c", 0.3, 0.1, "other"),
    ]
    svg = fromstring(trade_off(points, "x", "y", "title"))
    places = [(number(one, "cx"), number(one, "cy")) for one in svg.iter(f"{SVG}circle")]
    assert places[0][0] < places[1][0] < places[2][0]
    assert places[0][1] < places[1][1] < places[2][1]  # a lower rate is further down
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.02)


def test_labels_keep_apart_and_fall_back_to_numbers() -> None:
    places = [(200.0 + 3 * index, 200.0) for index in range(8)]
    labels = place_labels(places, ["a long label of it"] * 8, (0, 0, 420, 400))
    texts = [label.text for label in labels]
    assert "a long label of it" in texts
    assert "8" in texts
    whole = [label.box for label in labels if label.text == "a long label of it"]
    for one, other in combinations(whole, 2):
        apart_across = one[2] <= other[0] or other[2] <= one[0]
        assert apart_across or one[3] <= other[1] or other[3] <= one[1]


@given(st.lists(RATES, min_size=1, max_size=9), st.booleans())
def test_an_axis_reaches_over_its_values_on_round_numbers(values: list[float], zero: bool) -> None:
    axis = make_axis(values, 10, 110, zero=zero)
    assert 2 <= len(axis.ticks) <= 8
    for value in values:
        assert 10 - 1e-3 <= axis(value) <= 110 + 1e-3
    assert axis(axis.low) == 10
    assert axis(axis.high) == 110


def test_a_rate_that_is_not_known_has_no_bar() -> None:
    svg = fromstring(bars([Bar("a", None), Bar("b", 0.5)], "title"))
    assert len(list(svg.iter(f"{SVG}rect"))) == 1
    assert "a: no rate" in svg.attrib["aria-label"]


def test_names_are_text_whatever_is_in_them() -> None:
    name = '"><script>alert(1)</script>&'
    for drawn in (
        bars([Bar(name, 0.1)], name),
        trade_off([ChartPoint(name, 0.1, 0.1, "other")], name, name, name),
    ):
        assert "<script" not in drawn
        assert name in fromstring(drawn).attrib["aria-label"]


def test_a_point_without_a_name_is_drawn_and_described_but_not_labelled() -> None:
    points = [ChartPoint("a", 0.1, 0.1, "other", is_named=False), ChartPoint("b", 0.2, 0.2, "base")]
    svg = fromstring(trade_off(points, "x", "y", "title", front=[(0.1, 0.2), (0.2, 0.1)]))
    assert [label.text for label in classed(svg, "label")] == ["b"]
    assert len(classed(svg, "point")) == 2
    assert "a: 10.00" in svg.attrib["aria-label"]
    # From left to right at the higher rate, then down.
    [front] = classed(svg, "front")
    left, corner, right = (place.split(",") for place in front.attrib["points"].split())
    assert (corner[0], corner[1]) == (right[0], left[1])


def test_a_curve_joins_what_counts_over_the_parameters_own_values() -> None:
    points = [
        ChartPoint("#1", 0.5, 0.2, "other"),
        ChartPoint("#2", 1.5, 0.1, "merge"),
        ChartPoint("#3", 1.0, 0.4, "cross"),
    ]
    svg = fromstring(curve(points, "λ", "WER", "title", level=("base", 0.5), is_joined=True))
    ticks = [tick.text for tick in classed(svg, "tick") if tick.get("text-anchor") == "middle"]
    assert (ticks[0], ticks[-1]) == ("0.4", "1.6")  # not in percent
    [joined] = classed(svg, "joined")
    assert len(joined.attrib["points"].split()) == 2
    assert len(classed(svg, "level")) == 1
    assert "#2: 10.00 at 1.5" in svg.attrib["aria-label"]
    assert "base: 50.00" in svg.attrib["aria-label"]
