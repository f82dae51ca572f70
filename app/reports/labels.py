"""Places the labels of a scatter plot's points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A letter's average width and a line's height in the style sheet's font.
_LETTER = 6.6
LINE = 14.0
_APART = 10.0

Box = tuple[float, float, float, float]
Place = tuple[float, float]


@dataclass(frozen=True)
class Label:
    """A text and the start of its baseline."""

    text: str
    x: float
    y: float

    @property
    def box(self) -> Box:
        """Left, top, right and bottom."""
        return (self.x, self.y - LINE + 3, self.x + width_of(self.text), self.y + 3)


def width_of(text: str) -> float:
    """Return the approximate width of a text."""
    return _LETTER * len(text)


def place_labels(points: Sequence[Place], texts: Sequence[str], frame: Box) -> list[Label]:
    """Return a label next to each point that overlaps no other label or point, if there is room.

    If there is no room for the text, the label is the point's number, from 1. A point without a
    text has no label, but others keep off it.
    """
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    labels = []
    for number, (point, text) in enumerate(zip(points, texts, strict=True), start=1):
        if not text:
            labels.append(Label("", *point))
            continue
        label = (
            _free(point, text, taken, frame)
            or _free(point, str(number), taken, frame)
            or _free(point, str(number), taken, frame, apart=2 * _APART)
            or next(_around(point, str(number), _APART))
        )
        taken.append(label.box)
        labels.append(label)
    return labels


def _free(
    point: Place, text: str, taken: Sequence[Box], frame: Box, apart: float = _APART
) -> Label | None:
    for label in _around(point, text, apart):
        box = label.box
        across = box[0] >= frame[0] and box[2] <= frame[2] + 8
        inside = across and box[1] >= frame[1] - 6 and box[3] <= frame[3] + 2
        if inside and not any(_overlap(box, other) for other in taken):
            return label
    return None


def _around(point: Place, text: str, apart: float) -> Iterator[Label]:
    (x, y), width = point, width_of(text)
    for dx, dy in (
        (apart, 4.0), (-apart - width, 4.0), (-width / 2, -apart), (-width / 2, apart + 10),
        (apart - 3, -apart + 2), (apart - 3, apart + 8),
        (-apart + 3 - width, -apart + 2), (-apart + 3 - width, apart + 8),
    ):  # fmt: skip
        yield Label(text, x + dx, y + dy)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
