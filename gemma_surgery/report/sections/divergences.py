"""How divergences are drawn, of whole recipes and of their steps."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_surgery.report.charts import Spread, spread_chart
from gemma_surgery.report.divergences import Divergence
from gemma_surgery.report.sections.blocks import Figure, Table
from gemma_surgery.report.wording import three_digits

# Divergences below are rounding.
FLOOR = 1e-7
NEEDED = ("1", "10", "50", "90", "99")
UNIT = "KL divergence, nats"
MEAN_NOTE = (
    "Mean over all scored places of sum p (ln p - ln q), p the original's. Whiskers: one standard error."
)


def spread_figure(key: str, title: str, found: Sequence[tuple[str, Divergence]]) -> Figure | None:
    """Boxes with whiskers, one for each label; None where no distribution is known."""
    able = [(label, each) for label, each in found if all(percent in each.percentiles for percent in NEEDED)]
    if not able:
        return None
    spreads = []
    for label, each in able:
        of = each.percentiles
        spreads.append(
            Spread(
                label,
                f"median {three_digits(of['50'])}",
                (of["1"], of["99"]),
                (of["10"], of["90"]),
                of["50"],
                each.mean.value,
                of["99"] if each.maximum is None else each.maximum,
            )
        )
    percents = sorted({percent for _, each in able for percent in each.percentiles}, key=_as_number)
    columns = (("percentile", "left"), *((label, "right") for label, _ in able))
    rows = [
        (f"{key} %", *(three_digits(e.percentiles[key]) if key in e.percentiles else "" for _, e in able))
        for key in percents
    ]
    rows.append(("maximum", *("" if e.maximum is None else three_digits(e.maximum) for _, e in able)))
    return Figure(
        key,
        title,
        spread_chart(title, spreads, f"{UNIT}, logarithmic", FLOOR),
        "Box: 10 to 90 % of the places, line: 1 to 99 %, bar: median, dot: mean, ring: maximum. "
        f"What lies below {FLOOR:g} is drawn there.",
        table=Table(title, columns, rows, folded=True),
    )


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("inf")
