"""The model card: README.md of the output, with measured figures and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gemma_surgery.checkpoint.whole_file import write_whole
from gemma_surgery.report.fields import WHERE
from gemma_surgery.report.material import Material
from gemma_surgery.report.page import template_text
from gemma_surgery.report.sections.blocks import Figure, Table
from gemma_surgery.report.sections.provenance import command_again
from gemma_surgery.report.sections.quality import quality_section
from gemma_surgery.report.sections.size import size_section
from gemma_surgery.report.sections.speed import speed_section
from gemma_surgery.report.wording import percent, size, visible
from gemma_surgery.report.writing import check_own

NAME = "README.md"
MARK = "<!-- written by gemma-surgery report -->"
# With these a text could become markup, end a cell or close a code span.
_SPECIAL = re.compile(r"([\\`*_\[\]<>|&#~$!])")
_FENCE = re.compile(r"`{3,}")


def check_card(folder: Path, overwrite: bool) -> None:
    """Refuse to replace a README.md that is not ours.

    Raises:
        SurgeryError: there is one.
    """
    check_own(folder / NAME, MARK, overwrite)


def write_card(folder: Path, text: str) -> Path:
    """Write the card into the output folder.

    Raises:
        SurgeryError: it cannot be written.
    """
    write_whole(folder / NAME, text, WHERE)
    return folder / NAME


def render_card(material: Material) -> str:
    """The card's Markdown, front matter first."""
    # Other candidates, and the steps that made them, are not what the card is of.
    material = replace(material, step_costs=material.own_step_costs)
    if material.final is not None:
        material = replace(material, evaluations=(material.final,))
    outcome = material.outcome
    environment = Environment(
        loader=FunctionLoader(template_text),
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = _yaml
    environment.filters["table"] = _table
    environment.filters["fenced"] = _fenced
    smaller = 1 - outcome.output_bytes / max(1, outcome.source_bytes)
    quality = _tables(quality_section(material).blocks, {"figures", "step-kld"})
    speed = _tables(speed_section(material).blocks, {"speeds"})
    return environment.get_template("card.md.jinja").render(
        mark=Markup(MARK),
        pipeline="image-text-to-text" if material.multimodal else "text-generation",
        license=material.license,
        base_model=material.base_model,
        name=outcome.name,
        recipe=outcome.recipe_name,
        recipe_toml=outcome.recipe_toml,
        original=material.reference if material.reference_is_source else "",
        source_size=size(outcome.source_bytes),
        output_size=size(outcome.output_bytes),
        smaller=percent(smaller) if smaller > 0 else "",
        sizes=_tables(size_section(material).blocks, {"waterfall", "components"}),
        quality=quality,
        protocol=quality_section(material).lead,
        remarks=[
            block.note
            for block in quality_section(material).blocks
            if isinstance(block, Figure) and block.key == "figures"
        ],
        speed=speed,
        unmeasured=[name for name, tables in (("quality", quality), ("speed", speed)) if not tables],
        identities=[
            ("source fingerprint", outcome.source_fingerprint),
            ("plan sha256", outcome.plan_sha256),
            ("written by", f"gemma-surgery {outcome.version}"),
        ],
        command=command_again(material),
    )


def _tables(blocks: Sequence[object], keys: set[str]) -> list[Table]:
    return [b.table for b in blocks if isinstance(b, Figure) and b.key in keys and b.table is not None]


def _finalized(value: object) -> object:
    return _text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _text(text: str) -> str:
    """Text on one line that Markdown takes for nothing but text."""
    return _SPECIAL.sub(r"\\\1", " ".join(visible(text).split()))


def _yaml(value: str) -> Markup:
    """A JSON string is a YAML string."""
    return Markup(json.dumps(visible(value), ensure_ascii=False))


def _table(table: Table) -> Markup:
    rows = [
        [heading for heading, _ in table.columns],
        *table.rows,
    ]
    lines = [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows]
    lines.insert(1, f"|{'|'.join('---:' if side == 'right' else '---' for _, side in table.columns)}|")
    return Markup("\n".join(lines))


def _fenced(text: str, language: str = "") -> Markup:
    """A code block whose fence is longer than any inside."""
    longest = max((len(match) for match in _FENCE.findall(text)), default=2)
    fence = "`" * (longest + 1)
    return Markup(f"{fence}{language}\n{visible(text).rstrip()}\n{fence}")
