"""SVG elements as escaped markup, scales and ticks.

Widths are percentages and heights are pixels: a chart takes the width that there is, and its text never
shrinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from gemma_surgery.report.wording import tick, visible

Written = Callable[[float], str]

# Series that colours and marks tell apart; further ones begin again.
NUM_SERIES = 6
# Elements of HTML without an end.
VOID = ("img",)


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element; text is escaped, `Markup` is not, attributes that are None are left out.

    Args:
        name: of the element.
        *children: text or elements.
        **attributes: `class_` for `class`, `text_anchor` for `text-anchor`.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _value(value))
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup("<{}{}>").format(name, written)
    inside = Markup("").join(escape(_safe(child)) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(name, written, inside)


def share(fraction: float) -> str:
    """A fraction of the width, as a percentage."""
    return f"{100 * fraction:.3f}%"


@dataclass(frozen=True)
class Scale:
    """From data to a fraction of the width or height.

    Attributes:
        low: where the axis begins.
        high: where it ends.
        logarithmic: both ends are positive then; what lies below is drawn at the beginning.
    """

    low: float
    high: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """0 at the axis's beginning, 1 at its end."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0

    def ticks(self, most: int = 5) -> list[float]:
        """Round values on the axis, `most` at most but for the two ends of a logarithmic one."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            stride = max(1, math.ceil((last - first + 1) / most))
            return [10.0**power for power in range(first, last + 1, stride)]
        return _round_ticks(self.low, self.high, most)


def linear_scale(values: Sequence[float], from_zero: bool = True) -> Scale:
    """An axis with room for all values that ends at a round one."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        low, high = (low, low + 1) if from_zero else (low - 0.5, high + 0.5)
    step = _step(high - low, 5)
    return Scale(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def log_scale(values: Sequence[float], floor: float) -> Scale:
    """A logarithmic axis over whole powers of ten; values up to `floor` lie at its beginning."""
    positive = [max(value, floor) for value in values] or [floor]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return Scale(10.0**low, 10.0 ** max(high, low + 1), logarithmic=True)


def axis(scale: Scale, y: float, label: str, written: Written = tick) -> Markup:
    """A horizontal axis at height `y`, with ticks and its label below: 36 px in all."""
    parts = [tag("line", class_="axis", x1="0", x2="100%", y1=y, y2=y)]
    for value in scale.ticks():
        place = scale(value)
        anchor = "start" if place < 0.04 else "end" if place > 0.96 else "middle"
        parts.append(tag("line", class_="axis", x1=share(place), x2=share(place), y1=y, y2=y + 4))
        parts.append(tag("text", written(value), class_="tick", x=share(place), y=y + 17, text_anchor=anchor))
    parts.append(tag("text", label, class_="label", x="100%", y=y + 33, text_anchor="end"))
    return Markup("").join(parts)


def chart(label: str, height: float, *parts: str) -> Markup:
    """The root of a chart.

    Args:
        label: what a screen reader says; the figures are in a table.
        height: pixels.
        *parts: elements.
    """
    return tag(
        "svg", *parts, class_="chart", width="100%", height=height, role="img", aria_label=visible(label)
    )


def _step(span: float, most: int) -> float:
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    return next(times * power for times in (1, 2, 5, 10) if times * power >= raw * (1 - 1e-9))


def _round_ticks(low: float, high: float, most: int) -> list[float]:
    if high <= low:
        return [low]
    step = _step(high - low, most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # 0.1 * 3 is not 0.3.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _safe(child: str) -> str:
    return child if isinstance(child, Markup) else visible(child)


def _value(value: str | float) -> str:
    return _safe(value) if isinstance(value, str) else f"{value:.6g}"
