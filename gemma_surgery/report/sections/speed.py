"""Speed and memory, before and after."""

from __future__ import annotations

from gemma_surgery.report.charts import Bar, bar_chart
from gemma_surgery.report.material import Material
from gemma_surgery.report.measurements import Speed
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.wording import count, percent, size, three_digits

COMMAND = "gemma-surgery bench OUT --against ORIGINAL --json > bench.json"


def speed_section(material: Material) -> Section:
    """A chart of generation speed, and the table."""
    rows = material.speeds
    if not rows:
        return Section("speed", "Speed and memory", "", (Missing("Speed and memory", COMMAND),))
    return Section("speed", "Speed and memory", " ".join(_ratios(rows)), (_chart(rows), _table(rows)))


def _chart(rows: tuple[Speed, ...]) -> Block:
    title = "Generation speed"
    bars = [
        Bar(
            f"{row.model}, {_workload(row)}",
            f"{three_digits(row.generation[0])} tokens/s",
            0.0,
            row.generation[0],
            tip=f"{row.model}: trials from {three_digits(row.generation[1])} to "
            f"{three_digits(row.generation[2])} tokens/s",
        )
        for row in rows
    ]
    return Figure(
        "rates", title, bar_chart(title, bars, "tokens per second, median of the trials"),
        "On the machine on which `bench` ran.",
    )  # fmt: skip


def _table(rows: tuple[Speed, ...]) -> Block:
    title = "Speed and memory by workload"
    columns = (
        ("model", "left"),
        ("workload", "left"),
        ("prompt, tokens/s", "right"),
        ("vision, s", "right"),
        ("generation, tokens/s (range)", "right"),
        ("bytes per token", "right"),
        ("of bandwidth", "right"),
        ("peak memory", "right"),
    )
    cells = [
        (
            row.model,
            _workload(row),
            three_digits(row.prompt[0]),
            three_digits(row.vision_seconds) if row.images and row.vision_seconds is not None else "–",
            f"{three_digits(row.generation[0])} ({three_digits(row.generation[1])}–"
            f"{three_digits(row.generation[2])})",
            "–" if row.bytes_per_token is None else size(row.bytes_per_token),
            "–" if row.bandwidth_fraction is None else percent(row.bandwidth_fraction),
            "–" if row.peak_bytes is None else size(row.peak_bytes),
        )
        for row in rows
    ]
    return Figure("speeds", title, None, table=Table(title, columns, cells))


def _ratios(rows: tuple[Speed, ...]) -> list[str]:
    said: list[str] = []
    for row in rows:
        known = [
            f"{name} {row.ratios[key]:.2f}x"
            for key, name in (
                ("prompt_tps", "prompt"),
                ("generation_tps", "generation"),
                ("peak_memory_bytes", "peak memory"),
            )
            if key in row.ratios
        ]
        if known and row.against:
            said.append(f"{row.model} against {row.against}, {_workload(row)}: {', '.join(known)}.")
    return said


def _workload(row: Speed) -> str:
    tokens = count(row.prompt_tokens, "token")
    return f"{tokens}, {count(row.images, 'image')}" if row.images else tokens
