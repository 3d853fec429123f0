"""The page: sections, style and script in one HTML file that makes no request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from gemma_surgery import __version__
from gemma_surgery.report.material import Material
from gemma_surgery.report.sections.answers import answers_section, images_section
from gemma_surgery.report.sections.blocks import Section
from gemma_surgery.report.sections.neurons import neurons_section
from gemma_surgery.report.sections.provenance import provenance_section
from gemma_surgery.report.sections.quality import quality_section, score_text
from gemma_surgery.report.sections.search import search_section
from gemma_surgery.report.sections.size import size_section
from gemma_surgery.report.sections.speed import speed_section
from gemma_surgery.report.sections.vocabulary import vocabulary_section
from gemma_surgery.report.wording import code_spans, percent, size, three_digits, visible

# How a page of ours is told from one of somebody else's.
GENERATOR = "gemma-surgery report"


@dataclass(frozen=True)
class KeyFigure:
    """One of the figures at the top: what it is, the figure, and what it is of."""

    name: str
    figure: str
    detail: str


def render_page(material: Material) -> str:
    """The whole page."""
    outcome = material.outcome
    smaller = 1 - outcome.output_bytes / max(1, outcome.source_bytes)
    style, script = template_text("style.css"), template_text("heatmap.js")
    return (
        environment()
        .get_template("page.html.jinja")
        .render(
            generator=f"{GENERATOR} {__version__}",
            policy=_policy(style, script),
            style=Markup(style),
            script=Markup(script),
            name=outcome.name,
            recipe=outcome.recipe_name,
            reference=material.reference if material.reference_is_source else "",
            smaller=percent(smaller) if smaller > 0 else "",
            key_figures=list(key_figures(material)),
            sections=list(_sections(material)),
            has_heatmap=material.activity is not None,
        )
    )


def key_figures(material: Material) -> Iterator[KeyFigure]:
    """What is known of size, quality and speed, in a few figures."""
    outcome = material.outcome
    yield KeyFigure("size", size(outcome.output_bytes), f"of {size(outcome.source_bytes)}")
    final = material.final
    if final is not None and final.divergence is not None:
        bound, mean = "at least; " if final.divergence.is_lower_bound else "", final.divergence.mean
        detail = f"{bound}± {three_digits(mean.stderr)}"
        yield KeyFigure("mean KL, nats", f"{mean.value:.2g}", detail)
    if final is not None and final.same_top is not None:
        yield KeyFigure(
            "same likeliest token", percent(final.same_top.value), f"of {final.positions or 0:,} places"
        )
    if final is not None and final.ppl_ratio is not None:
        shown = f"± {three_digits(final.ppl_ratio.stderr)}"
        yield KeyFigure(
            "ratio of perplexities", f"{final.ppl_ratio.value:.3f}", f"{shown}; 1 is the original"
        )
    if final is not None and final.tasks is not None:
        text = score_text(final.tasks).partition(" (")
        yield KeyFigure("tasks right", text[0], text[2].rstrip(")"))
    own = (row for row in material.speeds if row.model == outcome.name and row.against)
    rated = next((row for row in own if "generation_tps" in row.ratios), None)
    if rated is not None:
        detail = f"{rated.against}'s, {three_digits(rated.generation[0])} tokens/s"
        yield KeyFigure("generation speed", f"{rated.ratios['generation_tps']:.2f}x", detail)


@cache
def environment() -> Environment:
    """Templates of the page: every text is escaped, and what cannot be seen is shown."""
    made = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["coded"] = _coded
    return made


def template_text(name: str) -> str:
    """A file of `templates/`."""
    return (resources.files("gemma_surgery.report") / "templates" / name).read_text("utf-8")


def _sections(material: Material) -> Iterator[Section]:
    yield size_section(material)
    yield quality_section(material)
    yield answers_section(material)
    images = images_section(material)
    if images is not None:
        yield images
    yield vocabulary_section(material)
    yield neurons_section(material)
    yield search_section(material)
    yield speed_section(material)
    yield provenance_section(material)


def _policy(style: str, script: str) -> str:
    """A content security policy under which nothing is fetched and nothing else runs."""
    return (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _coded(text: str) -> Markup:
    return text if isinstance(text, Markup) else code_spans(text)


def _shown(value: object) -> object:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
