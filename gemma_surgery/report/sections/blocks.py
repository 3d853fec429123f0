"""What sections are made of: figures, tables, and lines that name what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        caption: for screen readers, and above a folded table.
        columns: heading and `left` or `right`.
        rows: text or markup.
        folded: shown on request: the chart beside it says the same.
    """

    caption: str
    columns: tuple[tuple[str, str], ...]
    rows: Sequence[Sequence[str]]
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart with its title, what explains it, and its figures as a table.

    Attributes:
        key: its id in the page.
        title: what is shown.
        chart: SVG or other markup; None for a table alone.
        note: how to read it.
        legend: mark and name of each series.
        table: the same in figures.
    """

    key: str
    title: str
    chart: Markup | None = None
    note: str = ""
    legend: tuple[tuple[Markup, str], ...] = ()
    table: Table | None = None


@dataclass(frozen=True)
class Missing:
    """A figure that was left out: what it would show, and the command that makes its data."""

    title: str
    command: str


@dataclass(frozen=True)
class Pair:
    """Two texts side by side with their differences marked, below a prompt and perhaps an image."""

    prompt: str
    before: Markup
    after: Markup
    same: bool
    thumbnail: str = ""


@dataclass(frozen=True)
class Pairs:
    """A list of them; the names are those of the two models."""

    key: str
    title: str
    note: str
    names: tuple[str, str]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Listing:
    """A file's text."""

    key: str
    title: str
    text: str


Block = Figure | Missing | Pairs | Listing


@dataclass(frozen=True)
class Section:
    """A heading, a sentence or two, and blocks."""

    key: str
    title: str
    lead: str
    blocks: tuple[Block, ...]
