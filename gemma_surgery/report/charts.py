"""Charts of rows under each other over one axis: bars, waterfalls, stacks and spreads, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gemma_surgery.report.svg import (
    NUM_SERIES,
    Scale,
    Written,
    axis,
    chart,
    linear_scale,
    log_scale,
    share,
    tag,
)
from gemma_surgery.report.wording import tick

ROW_HEIGHT = 40
TEXT_Y = 14
BAR_Y, BAR_HEIGHT = 21, 10
AXIS_HEIGHT = 38
# Label and figure of so many characters fit beside each other on a phone; longer ones stand on two lines.
LINE_CHARACTERS, LINE_HEIGHT = 42, 18
MOST_CHARACTERS = 46


@dataclass(frozen=True)
class Bar:
    """One row: a label, what its figure is, and a bar between two values.

    Attributes:
        label: on the left, above the bar.
        figure: on the right.
        start: of the bar, in the unit of the axis.
        end: of the bar.
        kind: class of its colour: `kept`, `less`, `more` or `plain`.
        error: standard error of `end`, drawn as a whisker.
        tip: what is shown on hovering.
    """

    label: str
    figure: str
    start: float
    end: float
    kind: str = "plain"
    error: float = 0.0
    tip: str = ""


def bar_chart(name: str, bars: Sequence[Bar], label: str, written: Written = tick) -> Markup:
    """Horizontal bars from above to below, over one axis; a waterfall where they begin where others end."""
    scale = linear_scale(
        [edge for bar in bars for edge in (bar.start, bar.end, bar.end + bar.error, bar.end - bar.error)]
    )
    parts: list[str] = []
    extra = _extra_height(bars)
    for index, bar in enumerate(bars):
        top = index * (ROW_HEIGHT + extra) + extra
        low, high = sorted((scale(bar.start), scale(bar.end)))
        row = [
            tag("title", bar.tip or f"{bar.label}: {bar.figure}"),
            _heading(bar, top, extra),
            tag("rect", class_="track", x="0", y=top + BAR_Y, width="100%", height=BAR_HEIGHT),
            tag(
                "rect",
                class_=f"bar {bar.kind}",
                x=share(low),
                y=top + BAR_Y,
                width=share(max(high - low, 0.002)),
                height=BAR_HEIGHT,
            ),
        ]
        if bar.error:
            row.append(
                _whisker(scale, bar.end - bar.error, bar.end + bar.error, top + BAR_Y + BAR_HEIGHT / 2)
            )
        parts.append(tag("g", *row, class_="row"))
    bottom = len(bars) * (ROW_HEIGHT + extra)
    return chart(name, bottom + AXIS_HEIGHT, *parts, axis(scale, bottom, label, written))


@dataclass(frozen=True)
class Stack:
    """One bar of parts.

    Attributes:
        label: on the left.
        figure: on the right.
        parts: name, value, number of the series and tip of each.
    """

    label: str
    figure: str
    parts: tuple[tuple[str, float, int, str], ...]


def stack_chart(name: str, stacks: Sequence[Stack], label: str, written: Written = tick) -> Markup:
    """Bars whose parts add up, over one axis."""
    scale = linear_scale([sum(part[1] for part in stack.parts) for stack in stacks])
    drawn: list[str] = []
    for index, stack in enumerate(stacks):
        top, done = index * (ROW_HEIGHT + 10), 0.0
        drawn.append(_heading(stack, top, 0))
        for _, value, series, tip in stack.parts:
            drawn.append(
                tag(
                    "rect",
                    tag("title", tip),
                    class_=f"part series{series % NUM_SERIES}",
                    x=share(scale(done)),
                    y=top + BAR_Y,
                    width=share(scale(done + value) - scale(done)),
                    height=BAR_HEIGHT + 8,
                )
            )
            done += value
    bottom = len(stacks) * (ROW_HEIGHT + 10)
    return chart(name, bottom + AXIS_HEIGHT, *drawn, axis(scale, bottom, label, written))


@dataclass(frozen=True)
class Spread:
    """Where the values of one distribution lie.

    Attributes:
        label: on the left.
        figure: on the right.
        whisker: a low and a high percentile.
        box: two that lie between them.
        median: drawn as a line.
        mean: drawn as a dot.
        maximum: drawn as a ring.
    """

    label: str
    figure: str
    whisker: tuple[float, float]
    box: tuple[float, float]
    median: float
    mean: float
    maximum: float


def spread_chart(name: str, spreads: Sequence[Spread], label: str, floor: float) -> Markup:
    """Boxes with whiskers on a logarithmic axis; values below `floor` lie at its beginning."""
    scale = log_scale([v for s in spreads for v in (*s.whisker, s.mean, s.maximum)], floor)
    parts: list[str] = []
    extra = _extra_height(spreads)
    for index, spread in enumerate(spreads):
        top = index * (ROW_HEIGHT + extra) + extra
        y = top + BAR_Y + BAR_HEIGHT / 2
        low, high = scale(spread.box[0]), scale(spread.box[1])
        parts.append(
            tag(
                "g",
                tag("title", f"{spread.label}: {spread.figure}"),
                _heading(spread, top, extra),
                _whisker(scale, *spread.whisker, y),
                tag(
                    "rect",
                    class_="bar box",
                    x=share(low),
                    y=top + BAR_Y,
                    width=share(max(high - low, 0.002)),
                    height=BAR_HEIGHT,
                ),
                _upright("median", scale(spread.median), top + BAR_Y - 1, top + BAR_Y + BAR_HEIGHT + 1),
                tag("circle", class_="mean", cx=share(scale(spread.mean)), cy=y, r=4),
                tag("circle", class_="maximum", cx=share(scale(spread.maximum)), cy=y, r=3.5),
                class_="row",
            )
        )
    bottom = len(spreads) * (ROW_HEIGHT + extra)
    return chart(name, bottom + AXIS_HEIGHT, *parts, axis(scale, bottom, label))


def _extra_height(rows: Sequence[Bar | Spread]) -> int:
    longest = max((min(len(row.label), MOST_CHARACTERS) + len(row.figure) for row in rows), default=0)
    return LINE_HEIGHT if longest > LINE_CHARACTERS else 0


def _heading(row: Bar | Spread | Stack, top: float, extra: float) -> Markup:
    """Label and figure of a row, and the area that a pointer finds it by."""
    label = row.label if len(row.label) <= MOST_CHARACTERS else f"{row.label[: MOST_CHARACTERS - 1]}…"
    return Markup("").join(
        [
            tag("rect", class_="hit", x="0", y=top - extra, width="100%", height=ROW_HEIGHT + extra),
            tag("text", label, class_="name", x="0", y=top - extra + TEXT_Y),
            tag("text", row.figure, class_="figure", x="100%", y=top + TEXT_Y, text_anchor="end"),
        ]
    )


def _whisker(scale: Scale, low: float, high: float, y: float) -> Markup:
    start, end = scale(low), scale(high)
    return tag(
        "g",
        tag("line", x1=share(start), x2=share(end), y1=y, y2=y),
        _upright("", start, y - 4, y + 4),
        _upright("", end, y - 4, y + 4),
        class_="whisker",
    )


def _upright(kind: str, place: float, top: float, bottom: float) -> Markup:
    return tag("line", class_=kind or None, x1=share(place), x2=share(place), y1=top, y2=bottom)
