"""What a search measured: the front of size against divergence, and how sensitive each layer is."""

from __future__ import annotations

from gemma_surgery.report.charts import Bar, bar_chart
from gemma_surgery.report.material import Material
from gemma_surgery.report.measurements import Search, SearchPoint, Sensitivity
from gemma_surgery.report.plots import Point, Series, front_chart, legend_mark, series_chart
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.wording import count, size, size_in, three_digits, with_error

COMMAND = "gemma-surgery search ORIGINAL --target-size 1.6GiB --json > search.json"
UNIT = "mean KL divergence, nats"
# More of them would cover each other; they are in the table and under the pointer.
MOST_LABELS, LABEL_CHARACTERS = 9, 24


def search_section(material: Material) -> Section:
    """Pareto front, and sensitivity of layers and steps."""
    found = material.search
    if not (found.points or found.sensitivity):
        missing = Missing("Pareto front and sensitivity of layers", COMMAND)
        return Section("search", "Search", "", (missing,))
    blocks = [_front(found), *_sensitivity(found)]
    return Section("search", "Search", "", tuple(blocks))


def _front(found: Search) -> Block:
    title = "Size against divergence"
    if not found.points:
        return Missing(title, COMMAND)
    front = sorted((each for each in found.points if each.pareto), key=lambda each: each.size_bytes)
    others = [each for each in found.points if not each.pareto]
    most = max(each.size_bytes for each in found.points)
    drawn = front_chart(
        title,
        [_point(each, len(front) <= MOST_LABELS or each.best) for each in front],
        [_point(each, each.best) for each in others],
        ("size of the tensors", UNIT),
        size_in(most),
    )
    rows = [
        (each.label, f"{each.size_bytes:,.0f}", with_error(each.kld, each.stderr), _standing(each))
        for each in sorted(found.points, key=lambda each: each.size_bytes)
    ]
    columns = (("recipe", "left"), ("bytes", "right"), ("KL", "right"), ("", "left"))
    note = "Joined: recipes of which none other is both smaller and nearer to the original."
    return Figure("pareto", title, drawn, note, table=Table(title, columns, rows, folded=len(rows) > 8))


def _sensitivity(found: Search) -> list[Block]:
    by_layer: dict[str, list[Sensitivity]] = {}
    for each in found.sensitivity:
        if each.layer is not None:
            by_layer.setdefault(_name(each), []).append(each)
    whole = [each for each in found.sensitivity if each.layer is None]
    blocks: list[Block] = []
    base = found.base_kld
    note = "" if base is None else f"What comes on top of the {three_digits(base)} nats of the base recipe."
    if not found.sensitivity:
        return [Missing("Sensitivity of layers", COMMAND)]
    if by_layer:
        title = "Divergence when one layer alone is changed"
        series = [
            Series(
                name,
                tuple(
                    Point(
                        float(each.layer or 0),
                        each.kld,
                        f"{name}, layer {each.layer}: {three_digits(each.kld)}",
                    )
                    for each in sorted(group, key=lambda each: each.layer or 0)
                ),
            )
            for name, group in by_layer.items()
        ]
        rows = [_row(each) for group in by_layer.values() for each in group]
        blocks.append(
            Figure(
                "sensitivity",
                title,
                series_chart(title, series, UNIT, "layer"),
                note,
                legend=tuple((legend_mark(number), each.name) for number, each in enumerate(series)),
                table=Table(title, _COLUMNS, rows, folded=True),
            )
        )
    if whole:
        title = "Divergence when one step alone is applied"
        bars = [Bar(_name(each), three_digits(each.kld), 0.0, each.kld) for each in whole]
        table = Table(title, _COLUMNS, [_row(each) for each in whole], folded=True)
        blocks.append(Figure("sensitivity-steps", title, bar_chart(title, bars, UNIT), note, table=table))
    return blocks


_COLUMNS = (("step", "left"), ("layer", "right"), ("width", "right"), ("KL", "right"), ("bytes", "right"))


def _row(each: Sensitivity) -> tuple[str, ...]:
    numbers = (each.layer, each.width)
    return (
        _name(each) if each.dropped else each.step,
        *("" if number is None else f"{number:,}" for number in numbers),
        three_digits(each.kld),
        "" if each.size_bytes is None else f"{each.size_bytes:,.0f}",
    )


def _name(each: Sensitivity) -> str:
    if each.dropped:
        return f"{each.step}, {count(each.dropped, 'layer')}"
    return each.step if each.width is None else f"{each.step}, width {each.width:,}"


def _standing(each: SearchPoint) -> str:
    place = "on the front" if each.pareto else ""
    return ", ".join(part for part in (place, "chosen" if each.best else "") if part)


def _short(label: str) -> str:
    return label if len(label) <= LABEL_CHARACTERS else f"{label[: LABEL_CHARACTERS - 1]}…"


def _point(each: SearchPoint, labelled: bool) -> Point:
    tip = f"{each.label}: {size(each.size_bytes)}, {three_digits(each.kld)} nats"
    label = _short(f"{each.label}, chosen" if each.best else each.label)
    return Point(each.size_bytes, each.kld, tip, label if labelled else "", each.best)
