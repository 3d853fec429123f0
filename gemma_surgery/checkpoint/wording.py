"""How names, values and sizes from untrusted files appear in one-line messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_surgery.checkpoint.json_types import Json

MAX_SHOWN_CHARS = 160


def literal(text: str) -> str:
    """Return `text` in backticks, on one line, escaped where unprintable and shortened where long."""
    head = text[:MAX_SHOWN_CHARS]
    shown = head if head.isprintable() else head.encode("unicode_escape").decode("ascii")
    shown = shown.replace("`", "\\x60")
    if len(text) > len(head):
        shown += "..."
    return f"`{shown}`"


def brief(value: Json) -> str:
    """Return a JSON value as a message shows it: scalars as they are, containers by kind and length."""
    if isinstance(value, dict):
        return f"an object of {len(value):,} keys"
    if isinstance(value, list):
        return f"an array of {len(value):,} values"
    if isinstance(value, str):
        return literal(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length():,} bits"
    return repr(value)


def listing(names: list[str], limit: int = 3) -> str:
    """Return the first names in backticks and how many more there are."""
    shown = ", ".join(literal(name) for name in names[:limit])
    return f"{shown} and {len(names) - limit:,} more" if len(names) > limit else shown


def human_bytes(size_bytes: int) -> str:
    """Return a size in decimal units, as disks are sold: `2.99 GB`, `512 bytes`."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    value = float(size_bytes)
    for unit in ("kB", "MB", "GB", "TB", "PB"):
        value /= 1000
        if value < 999.995 or unit == "PB":
            return f"{value:.2f} {unit}"
    raise AssertionError("unreachable")
