"""Which tokens were kept: by pass of the selection and by script."""

from __future__ import annotations

from gemma_surgery.report.charts import Bar, bar_chart
from gemma_surgery.report.material import Material
from gemma_surgery.report.sections.blocks import Block, Figure, Missing, Section, Table
from gemma_surgery.report.wording import percent

STEP = "prune_vocabulary"
MAX_SCRIPTS = 14


def vocabulary_section(material: Material) -> Section:
    """Passes and scripts; of a whole vocabulary the scripts alone."""
    step = next((each for each in material.outcome.steps if each.name == STEP), None)
    if step is None:
        lead = f"The vocabulary is whole: the recipe has no `{STEP}`."
        blocks = (_scripts(material),) if material.scripts else ()
        return Section("vocabulary", "Vocabulary", lead, blocks)
    lead = next((f"{note}." for note in step.notes if " tokens kept" in note), "The vocabulary was pruned.")
    return Section("vocabulary", "Vocabulary", lead, (_passes(step.table), _scripts(material)))


def _passes(table: tuple[tuple[str, ...], ...]) -> Block:
    rows = [row for row in table[1:] if len(row) == 3 and all(map(_is_count, row[1:]))]
    if not rows:
        return Missing(
            "Kept tokens by pass: this manifest does not have them",
            "gemma-surgery compress ORIGINAL -o OUT --recipe recipe.toml --overwrite",
        )
    title = "Kept tokens by pass"
    bars = [
        Bar(name, f"+{added}", 0, _count(added), tip=f"{name}: matched {matched}, of which {added} were new")
        for name, matched, added in rows
    ]
    columns = (("pass", "left"), ("matched", "right"), ("new", "right"))
    return Figure(
        "passes",
        title,
        bar_chart(title, bars, "tokens that no pass before had matched"),
        table=Table(title, columns, rows),
    )


def _scripts(material: Material) -> Block:
    found, before = material.scripts, material.scripts_before
    if not found:
        return Missing(
            "Tokens by script: there is no `tokenizer.json` in the output",
            "gemma-surgery compress ORIGINAL -o OUT --recipe recipe.toml --overwrite",
        )
    shown = list(found.items())[:MAX_SCRIPTS]
    rest = sum(found.values()) - sum(number for _, number in shown)
    if rest:
        shown.append(("all others", rest))
    bars = [Bar(name, f"{number:,}", 0, number) for name, number in shown]
    rows: list[tuple[str, ...]]
    columns: tuple[tuple[str, str], ...] = (("script", "left"), ("tokens", "right"))
    if before:
        columns = (*columns, ("in the original", "right"), ("kept", "right"))
        names = [*found, *(name for name in before if name not in found)]
        rows = [
            (name, f"{found.get(name, 0):,}", f"{before.get(name, 0):,}",
             percent(found.get(name, 0) / before[name]) if before.get(name) else "")
            for name in names
        ]  # fmt: skip
    else:
        rows = [(name, f"{number:,}") for name, number in found.items()]
    title = "Tokens of the output by script"
    return Figure(
        "scripts",
        title,
        bar_chart(title, bars, "tokens"),
        "By the Unicode names of a token's letters; `<unusedN>` tokens are not counted.",
        table=Table(title, columns, rows, folded=len(rows) > 10),
    )


def _is_count(text: str) -> bool:
    digits = text.replace(",", "")
    return digits.isascii() and digits.isdigit()


def _count(text: str) -> int:
    return int(text.replace(",", ""))
