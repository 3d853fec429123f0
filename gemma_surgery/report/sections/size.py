"""Where the bytes went: by step and by component."""

from __future__ import annotations

from gemma_surgery.report.charts import Bar, Stack, bar_chart, stack_chart
from gemma_surgery.report.material import Material
from gemma_surgery.report.outcome import COMPONENTS, Outcome
from gemma_surgery.report.plots import legend_mark
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.wording import percent, size, size_in


def size_section(material: Material) -> Section:
    """Waterfall over the steps, and components before and after."""
    outcome = material.outcome
    smaller = 1 - outcome.output_bytes / max(1, outcome.source_bytes)
    changed = f"{percent(smaller)} smaller" if smaller >= 0 else f"{percent(-smaller)} larger"
    lead = (
        f"{outcome.source_bytes:,} bytes of tensors became {outcome.output_bytes:,}: {changed}. "
        f"{outcome.exact_tensors:,} of {outcome.num_tensors:,} stored tensors hold values of the "
        "original exactly."
    )
    return Section("size", "Size", lead, (_waterfall(outcome), _components(outcome)))


def _waterfall(outcome: Outcome) -> Block:
    bars = [Bar("original", size(outcome.source_bytes), 0, outcome.source_bytes, "kept")]
    rows: list[tuple[str, ...]] = [("original", "", "", f"{outcome.source_bytes:,}", "")]
    total = outcome.source_bytes
    for step in outcome.steps:
        change = step.added_bytes - step.saved_bytes
        values = "exact" if step.lossless else "new values"
        figure = size(change) if change <= 0 else f"+{size(change)}"
        tip = f"{step.name}: saved {step.saved_bytes:,} bytes, added {step.added_bytes:,}; {values}"
        kind = "less" if change < 0 else "more" if change else "kept"
        bars.append(Bar(step.name, figure, total, total + change, kind, tip=tip))
        total += change
        rows.append(
            (step.name, f"{step.saved_bytes:,}", f"{step.added_bytes:,}" if step.added_bytes else "",
             f"{total:,}", values)
        )  # fmt: skip
    bars.append(Bar("output", size(outcome.output_bytes), 0, outcome.output_bytes, "kept"))
    rows.append(("output", "", "", f"{outcome.output_bytes:,}", ""))
    columns = (("step", "left"), ("saved bytes", "right"), ("added bytes", "right"), ("total", "right"),
               ("remaining values", "left"))  # fmt: skip
    return Figure(
        "waterfall",
        "Bytes of tensors after each step",
        bar_chart("Bytes of tensors after each step", bars, "tensor data", size_in(outcome.source_bytes)),
        "Exact: every stored value that remains is a value of the original. It does not mean that the model "
        "computes the same: a dropped layer is exact in this sense.",
        table=Table("Bytes by step", columns, rows),
    )


def _components(outcome: Outcome) -> Block:
    if not outcome.before:
        return Missing(
            "Bytes of each component: this manifest does not say what the original's took",
            "gemma-surgery compress ORIGINAL -o OUT --recipe recipe.toml --overwrite",
        )
    names = [name for name in COMPONENTS if name in outcome.before or name in outcome.after]

    def parts(sizes: dict[str, int]) -> tuple[tuple[str, float, int, str], ...]:
        return tuple(
            (name, float(sizes[name]), number, f"{name}: {sizes[name]:,} bytes")
            for number, name in enumerate(names)
            if sizes.get(name)
        )

    stacks = [
        Stack("original", size(sum(outcome.before.values())), parts(outcome.before)),
        Stack("output", size(sum(outcome.after.values())), parts(outcome.after)),
    ]
    rows = [
        (name, f"{before:,}", f"{after:,}", percent(after / before) if before else "")
        for name in names
        for before, after in ((outcome.before.get(name, 0), outcome.after.get(name, 0)),)
    ]
    title = "Bytes by component"
    columns = (("component", "left"), ("original", "right"), ("output", "right"), ("left over", "right"))
    return Figure(
        "components",
        title,
        stack_chart(title, stacks, "tensor data", size_in(outcome.source_bytes)),
        legend=tuple((legend_mark(number, of_points=False), name) for number, name in enumerate(names)),
        table=Table(title, columns, rows),
    )
