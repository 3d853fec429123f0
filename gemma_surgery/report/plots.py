"""Plots with two axes: columns, a front among points, and series by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from gemma_surgery.report.svg import NUM_SERIES, Scale, Written, chart, linear_scale, log_scale, share, tag
from gemma_surgery.report.wording import three_digits, tick

# Left of the points is room for the ticks of the vertical axis.
GUTTER, RIGHT = 0.13, 0.98
# Points stand a little inside.
INSET = 0.02
TOP, HEIGHT = 26, 250
# A label left of a point so near the axis would run into it.
NEAR_AXIS = 0.22
# More values than these have every few of them written below.
MOST_KEYS = 17


def column_chart(name: str, values: Sequence[tuple[str, float]], label: str, below: str) -> Markup:
    """One upright bar per value: label and height; every few are labelled where there are many."""
    scale = linear_scale([value for _, value in values])
    parts: list[str] = [_grid(scale, label)]
    stride = max(1, -(-len(values) // MOST_KEYS))
    width = (RIGHT - GUTTER) / max(1, len(values))
    base = _height(scale, 0.0)
    for index, (key, value) in enumerate(values):
        left, y = GUTTER + index * width, _height(scale, value)
        top, tall = min(y, base), max(abs(base - y), 1.0)
        parts.append(
            tag(
                "rect",
                tag("title", f"{below} {key}: {three_digits(value)}"),
                class_="bar plain",
                x=share(left + width * 0.15),
                y=top,
                width=share(width * 0.7),
                height=tall,
            )
        )
        if index % stride == 0:
            parts.append(_below(key, left + width / 2))
    return _plot(name, parts, below)


@dataclass(frozen=True)
class Point:
    """A point of a plot; `label` is written beside it where it is not empty, `chosen` points have a ring."""

    x: float
    y: float
    tip: str
    label: str = ""
    chosen: bool = False


def front_chart(
    name: str, front: Sequence[Point], others: Sequence[Point], labels: tuple[str, str], written: Written
) -> Markup:
    """Points of a front, joined by steps, among others.

    Args:
        name: for screen readers.
        front: in ascending order of x.
        others: which the front beats.
        labels: of the horizontal and the vertical axis.
        written: writes the ticks of the horizontal axis.
    """
    points = [*front, *others]
    across = linear_scale([point.x for point in points], from_zero=False)
    upright = _upright_scale([point.y for point in points])

    def place(point: Point) -> tuple[float, float]:
        return GUTTER + INSET + (RIGHT - GUTTER - INSET) * across(point.x), _height(upright, point.y)

    parts: list[str] = [_grid(upright, labels[1])]
    for value in across.ticks():
        x = GUTTER + INSET + (RIGHT - GUTTER - INSET) * across(value)
        parts.append(_below(written(value), x, "end" if across(value) > 0.95 else "middle"))
    for one, other in pairwise(front):
        (x1, y1), (x2, y2) = place(one), place(other)
        parts.append(tag("line", class_="front", x1=share(x1), x2=share(x2), y1=y1, y2=y1))
        parts.append(tag("line", class_="front", x1=share(x2), x2=share(x2), y1=y1, y2=y2))
    for kind, group, radius in (("dot other", others, 4), ("dot on-front", front, 5)):
        for point in group:
            x, y = place(point)
            if point.chosen:
                parts.append(tag("circle", class_="chosen", cx=share(x), cy=y, r=radius + 4))
            tip = tag("title", point.tip)
            parts.append(tag("circle", tip, class_=kind, cx=share(x), cy=y, r=radius))
            if point.label:
                # Below a front, and to the left of it, there is nothing.
                left = x > NEAR_AXIS
                inset = tag(
                    "text",
                    point.label,
                    class_="tick point-name",
                    x=-8 if left else -4,
                    y=14 if left else 19,
                    text_anchor="end" if left else "start",
                )
                parts.append(tag("svg", inset, class_="at", x=share(x), y=y, overflow="visible"))
    return _plot(name, parts, labels[0])


@dataclass(frozen=True)
class Series:
    """Values by layer, joined by a line."""

    name: str
    points: tuple[Point, ...]


def series_chart(name: str, series: Sequence[Series], label: str, below: str) -> Markup:
    """Lines with a mark of its own per series."""
    places = sorted({point.x for each in series for point in each.points})
    upright = _upright_scale([point.y for each in series for point in each.points])
    scale = Scale(min(places), max(places))

    def place(point: Point) -> tuple[float, float]:
        return GUTTER + INSET + (RIGHT - GUTTER - 2 * INSET) * scale(point.x), _height(upright, point.y)

    parts: list[str] = [_grid(upright, label)]
    stride = max(1, -(-len(places) // MOST_KEYS))
    for x in places[::stride]:
        parts.append(_below(f"{x:g}", place(Point(x, upright.low, ""))[0]))
    for number, each in enumerate(series):
        kind = f"series{number % NUM_SERIES}"
        for one, other in pairwise(each.points):
            (x1, y1), (x2, y2) = place(one), place(other)
            parts.append(tag("line", class_=f"join {kind}", x1=share(x1), x2=share(x2), y1=y1, y2=y2))
        for point in each.points:
            x, y = place(point)
            parts.append(
                tag("svg", tag("title", point.tip), _mark(number), class_=f"at {kind}", x=share(x), y=y,
                    overflow="visible")
            )  # fmt: skip
    return _plot(name, parts, below)


def legend_mark(number: int, of_points: bool = True) -> Markup:
    """The mark of a series, for its legend: that of its points, or a patch of its colour."""
    kind = f"mark series{number % NUM_SERIES}"
    shape = _mark(number) if of_points else tag("rect", x=-5, y=-5, width=10, height=10)
    return tag("svg", shape, class_=kind, width=14, height=14, viewBox="-7 -7 14 14", aria_hidden="true")


def _mark(number: int) -> Markup:
    shapes = (
        tag("circle", r=4),
        tag("rect", x=-4, y=-4, width=8, height=8),
        tag("path", d="M0-5L5 4H-5Z"),
        tag("path", d="M0-5.5L5.5 0L0 5.5L-5.5 0Z"),
        tag("path", d="M0 5L5-4H-5Z"),
        tag("path", d="M-4-4L4 4M-4 4L4-4", class_="cross"),
    )
    return shapes[number % NUM_SERIES]


def _upright_scale(values: Sequence[float]) -> Scale:
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) and max(positive) > 30 * min(positive):
        return log_scale(values, min(positive))
    return linear_scale(values)


def _height(scale: Scale, value: float) -> float:
    return TOP + HEIGHT * (1 - scale(value))


def _grid(scale: Scale, label: str) -> Markup:
    parts = [tag("text", label, class_="label", x="0", y=12)]
    for value in scale.ticks():
        y = _height(scale, value)
        parts.append(tag("line", class_="grid", x1=share(GUTTER), x2="100%", y1=y, y2=y))
        parts.append(
            tag("text", tick(value), class_="tick", x=share(GUTTER - 0.015), y=y + 4, text_anchor="end")
        )
    return Markup("").join(parts)


def _below(text: str, place: float, anchor: str = "middle") -> Markup:
    return tag("text", text, class_="tick", x=share(place), y=TOP + HEIGHT + 18, text_anchor=anchor)


def _plot(name: str, parts: Sequence[str], below: str) -> Markup:
    height = TOP + HEIGHT
    label = tag("text", below, class_="label", x="100%", y=height + 36, text_anchor="end")
    return chart(name, height + 42, *parts, label)
