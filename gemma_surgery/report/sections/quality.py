"""How far from the original: divergence, perplexity, tasks, contractions, loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gemma_surgery.report.charts import Bar, bar_chart
from gemma_surgery.report.divergences import Measured, Protocol
from gemma_surgery.report.material import Material
from gemma_surgery.report.measurements import Evaluation, Score
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.sections.divergences import MEAN_NOTE, UNIT, spread_figure
from gemma_surgery.report.sections.steps import step_blocks
from gemma_surgery.report.wording import count, percent, three_digits, with_error

COMMAND = "gemma-surgery eval OUT --reference ORIGINAL --json > eval.json"


def quality_section(material: Material) -> Section:
    """Divergence from the original, and what the output can still do."""
    found, by_step = material.evaluations, material.step_costs
    blocks: tuple[Block, ...] = (Missing("Divergence, perplexity, tasks, contractions, loops", COMMAND),)
    if found:
        blocks = (_means(found), _spreads(found), _table(found))
    lead = _lead([*(each.protocol for each in found), *(each.protocol for each in by_step)])
    return Section("quality", "Quality", lead, (*blocks, *step_blocks(by_step)))


def _lead(found: Sequence[Protocol]) -> str:
    protocols = list(dict.fromkeys((each.text, each.data_sha256[:12]) for each in found if each.text))
    if not protocols:
        return ""
    if len(protocols) > 1:
        return "These were measured in different ways, and do not compare: " + " | ".join(
            f"{protocol}; data {data}" for protocol, data in protocols
        )
    protocol, data = protocols[0]
    return f"How it was measured: {protocol}; data {data}."


def _means(found: tuple[Evaluation, ...]) -> Block:
    title = "Mean KL divergence"
    bars: list[Bar] = []
    for each in found:
        if each.divergence is not None:
            mean = each.divergence.mean
            label = f"{each.label} (lower bound)" if each.divergence.is_lower_bound else each.label
            bars.append(Bar(label, with_error(mean.value, mean.stderr), 0.0, mean.value, error=mean.stderr))
    if not bars:
        return Missing(title, COMMAND)
    rows = [(bar.label, three_digits(bar.end), three_digits(bar.error)) for bar in bars]
    columns = (("measured on", "left"), ("mean, nats", "right"), ("standard error", "right"))
    return Figure("kld", title, bar_chart(title, bars, UNIT), MEAN_NOTE, table=Table(title, columns, rows))


def _spreads(found: tuple[Evaluation, ...]) -> Block:
    title = "Distribution of the KL divergence"
    figure = spread_figure("spread", title, [(e.label, e.divergence) for e in found if e.divergence])
    return figure or Missing(title, COMMAND)


def _table(found: tuple[Evaluation, ...]) -> Block:
    title = "All figures"
    figures: tuple[tuple[str, Callable[[Evaluation], str]], ...] = (
        ("mean KL divergence, nats", lambda e: _measured(e.divergence.mean if e.divergence else None)),
        ("same likeliest token", _same_top),
        ("perplexity", lambda e: _number(e.ppl)),
        ("perplexity of the original", lambda e: _number(e.ppl_reference)),
        ("ratio of perplexities", lambda e: _measured(e.ppl_ratio)),
        ("places scored", lambda e: f"{e.positions:,}" if e.positions else ""),
        ("tasks right", lambda e: score_text(e.tasks)),
        ("contractions right", lambda e: score_text(e.contractions)),
        ("contractions right, original", lambda e: score_text(e.contractions_reference)),
        ("impossible forms such as “I's” written", _forms),
        ("answers that fell into a loop", _loops),
        ("facts right in drawn scenes", lambda e: _image_share(e, "facts")),
        ("facts right, original", _facts_before),
        ("agreement of image descriptions", lambda e: _image_share(e, "agreement")),
    )  # fmt: skip
    rows = [
        (name, *cells)
        for name, figure in figures
        for cells in ([figure(each) or "–" for each in found],)
        if any(cell != "–" for cell in cells)
    ]
    columns = (("", "left"), *((each.label, "right") for each in found))
    return Figure("figures", title, None, " ".join(_remarks(found)), table=Table(title, columns, rows))


def _remarks(found: tuple[Evaluation, ...]) -> list[str]:
    said = ["–: not measured."]
    for each in found:
        if each.impossible_forms:
            forms = ", ".join(f"“{form}”" for form in sorted(set(each.impossible_forms)))
            said.append(
                f"{each.label} wrote {forms}: the published failure of a vocabulary that was cut too far."
            )
        if each.wrong_contractions:
            examples = ", ".join(f"“{text}”" for text in each.wrong_contractions[:3])
            number = count(len(each.wrong_contractions), "context")
            said.append(
                f"{each.label} finds a form such as “I's” likelier in {number}, e.g. instead of {examples}."
            )
        said += [f"{each.label}: {note}." for note in each.notes]
    return said


def score_text(score: Score | None) -> str:
    """A share, and the right ones out of all where they are known."""
    if score is None:
        return ""
    if score.right is not None and score.total is not None:
        return f"{percent(score.share)} ({score.right:,} of {score.total:,})"
    return f"{percent(score.share)} of {score.total:,}" if score.total is not None else percent(score.share)


def _number(value: float | None) -> str:
    return "" if value is None else three_digits(value)


def _measured(measured: Measured | None) -> str:
    return "" if measured is None else with_error(measured.value, measured.stderr)


def _same_top(each: Evaluation) -> str:
    if each.same_top is None:
        return ""
    error = f" ± {each.same_top.stderr:.1%}".replace("%", " %") if each.same_top.stderr else ""
    return percent(each.same_top.value) + error


def _forms(each: Evaluation) -> str:
    return "" if each.impossible_forms is None else f"{len(each.impossible_forms):,}"


def _loops(each: Evaluation) -> str:
    if each.repetition_rate is None:
        return ""
    of = f" of {each.continuations:,}" if each.continuations is not None else ""
    longest = f", longest {each.longest_loop_tokens:,} tokens" if each.longest_loop_tokens else ""
    return f"{percent(each.repetition_rate)}{of}{longest}"


def _image_share(each: Evaluation, kind: str) -> str:
    images = each.images
    if images is None or images.kind != kind or images.share is None:
        return ""
    return f"{percent(images.share)}, {count(images.count, 'image')}"


def _facts_before(each: Evaluation) -> str:
    return (
        percent(each.images.share_reference)
        if each.images and each.images.share_reference is not None
        else ""
    )
