"""The results of a bench run as a section in Markdown: machine, limits, one line per case, ratios of models.

Usage: ``python bench/table.py RUN.json [--append bench/RESULTS.md]``
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import Case, Measurement, read_run

HEADINGS = ("op", "case", "dtype", "ours", "rate", "of the limit", "compared with", "times as fast")
PAIRS = (("4B, mobile", "4B, original"), ("demo, mobile", "demo, 4-bit"))


def section(machine: dict, cases: list[Case]) -> str:
    """The whole section."""
    parts = [f"## {machine['date'][:10]}, commit {machine['commit']}: every op against its limit"]
    parts.append(about(machine, cases))
    parts.append("\n".join(table(cases)))
    if pairs := ratio_lines(cases):
        parts.append("\n".join(pairs))
    return "\n\n".join(parts) + "\n"


def about(machine: dict, cases: list[Case]) -> str:
    """Machine, versions, limits, and how to read the table."""
    limits = [each.limits for case in cases for each in (case.ours, *case.others)]

    def most(key: str) -> float:
        return max(limit[key] for limit in limits) / 1e9

    scaled = any(other.share < 1 for case in cases for other in case.others)
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']},"
        f" kernels for {machine['kernels']}; Python {machine['python']}, mlx {machine['mlx']} on the"
        f" {machine['device'].upper()}, its float32 products in {machine['blas']}.\n"
        f"Limits of all threads together, the best of the run: reading {most('read_per_second'):.1f} GB/s,"
        f" float32 {most('float_per_second'):.0f} GFLOP/s"
        + (f", 8-bit integers {most('int8_per_second'):.0f} GOP/s" if most("int8_per_second") else "")
        + ".\n"
        "Medians. `of the limit` is the time that the limits measured right around a case allow over the time"
        " taken: reading, or float32 arithmetic (FP), whichever is longer."
        " Products of integers may pass FP, and what the caches hold is read faster than memory."
        + ("\n~: a part of the work was done and its time scaled up." if scaled else "")
    )


def table(cases: list[Case]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for case in cases:
        others = ", ".join(f"{other.who} {about_seconds(other)}" for other in case.others)
        times = ", ".join(digits(value) for key, value in case.ratios().items() if key.startswith("over "))
        cells = (
            case.op,
            case.case,
            case.dtype,
            about_seconds(case.ours),
            rate(case.ours),
            of_limit(case.ours),
            others,
            times,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def digits(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def about_seconds(measurement: Measurement) -> str:
    """Seconds with a unit; marked where they were scaled up, or timed once."""
    seconds = measurement.seconds
    units = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
    unit, scale = next((pair for pair in units if seconds * pair[1] >= 1), units[-1])
    mark = "~" if measurement.share < 1 else ""
    return f"{mark}{digits(seconds * scale)} {unit}" + (" (once)" if measurement.rounds == 1 else "")


def rate(measurement: Measurement) -> str:
    """Bytes or operations per second."""
    if measurement.bytes_per_second:
        return f"{digits(measurement.bytes_per_second / 1e9)} GB/s"
    if measurement.work["operations"]:
        return f"{digits(measurement.work['operations'] / measurement.seconds / 1e9)} GFLOP/s"
    return ""


def of_limit(measurement: Measurement) -> str:
    """The share of the limit, and which one."""
    share = measurement.of_limit
    if share is None:
        return ""
    return (f"{share:.0%}" if share >= 0.01 else "< 1%") + " FP" * (measurement.roof_name == "float32")


def ratio_lines(cases: list[Case]) -> list[str]:
    """How many times as fast one model is as another."""

    def seconds(op: str, model: str) -> float | None:
        found = (case for case in cases if case.op == op and case.case.startswith(model))
        return next((case.ours.seconds for case in found), None)

    lines = []
    for fast, slow in PAIRS:
        ratios = []
        for op in dict.fromkeys(case.op for case in cases):
            mine, its = seconds(op, fast), seconds(op, slow)
            if mine and its:
                ratios.append(f"{op} {its / mine:.2f}")
        if ratios:
            lines.append(f"`{fast}` over `{slow}`, times as fast: {', '.join(ratios)}.")
    return lines


def main() -> None:
    """Print the section, or append it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--append", type=Path, help="file to append the section to")
    arguments = parser.parse_args()
    text = section(*read_run(arguments.run))
    if arguments.append:
        with arguments.append.open("a") as file:
            file.write("\n" + text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
