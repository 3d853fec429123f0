"""What each step of a recipe costs: mean divergence after it, and its distribution."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_surgery.report.charts import Bar, bar_chart
from gemma_surgery.report.divergences import Divergence, StepCost, StepCosts
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Table
from gemma_surgery.report.sections.divergences import MEAN_NOTE, UNIT, spread_figure
from gemma_surgery.report.wording import percent, three_digits, with_error

COMMAND = "gemma-surgery eval OUT --reference ORIGINAL --steps --json > eval.json"
TITLE = "Mean KL divergence after each step"
SPREAD_TITLE = "Distribution of the KL divergence after each step"
COLUMNS = (
    ("after step", "left"),
    ("mean, nats", "right"),
    ("standard error", "right"),
    ("99 %", "right"),
    ("same likeliest token", "right"),
    ("bytes", "right"),
)
NOTE = (
    f"{MEAN_NOTE} Each figure is that of all steps so far; what was left out is not among them. A step that "
    "changes no answer is not measured: its bar repeats the one before."
)


def step_blocks(found: Sequence[StepCosts]) -> tuple[Block, ...]:
    """Both figures, with the steps of several recipes one behind the other."""
    if not found:
        return (Missing(TITLE, COMMAND),)
    bars: list[Bar] = []
    rows: list[tuple[str, ...]] = []
    spreads: list[tuple[str, Divergence]] = []
    for costs in found:
        before = 0.0
        for step in costs.steps:
            label = f"{costs.label}: {_label(step)}" if len(found) > 1 else _label(step)
            rows.append((label, *_figures(step)))
            if step.divergence is None:
                bars.append(Bar(label, "no answer changes", 0.0, before, "kept"))
                continue
            spreads.append((label, step.divergence))
            mean = step.divergence.mean
            kind, figure = ("plain" if step.kept else "more"), with_error(mean.value, mean.stderr)
            bars.append(Bar(label, figure, 0.0, mean.value, kind, error=mean.stderr))
            before = mean.value if step.kept else before
    chart = bar_chart(TITLE, bars, UNIT) if spreads else None
    means = Figure("step-kld", TITLE, chart, NOTE, table=Table(TITLE, COLUMNS, rows, folded=bool(spreads)))
    spread = spread_figure("step-spread", SPREAD_TITLE, spreads)
    return (means,) if spread is None else (means, spread)


def _label(step: StepCost) -> str:
    """Number and name: a recipe may have a step twice."""
    label = f"{step.number} {step.name}"
    if step.divergence is not None and step.divergence.is_lower_bound:
        label += " (lower bound)"
    return label if step.kept else f"{label} (left out)"


def _figures(step: StepCost) -> tuple[str, ...]:
    size = "" if step.size_bytes is None else f"{step.size_bytes:,}"
    if step.divergence is None:
        return ("–", "–", "–", "–", size)
    mean, worst = step.divergence.mean, step.divergence.percentiles.get("99")
    return (
        three_digits(mean.value),
        three_digits(mean.stderr),
        "–" if worst is None else three_digits(worst),
        "–" if step.same_top is None else percent(step.same_top.value),
        size,
    )
