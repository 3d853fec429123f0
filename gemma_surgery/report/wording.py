"""How numbers, sizes and untrusted text appear in the page and the card."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable

from markupsafe import Markup, escape

# Marks that turn the direction of text and could make a line say something else.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CONTROL_PICTURES = 0x2400
_DELETE_PICTURE = "\u2421"
_SURROGATES = range(0xD800, 0xE000)
# Of a value with its error: further ones would be noise of float32.
MOST_DECIMALS = 8


def visible(text: str) -> str:
    """Text with signs for what cannot be seen: control characters, direction marks, half surrogates."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    code = ord(character)
    if character in "\n\t":
        return character
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    if code == 0x7F:
        return _DELETE_PICTURE
    if code in _SURROGATES or character in _BIDI or unicodedata.category(character) == "Cc":
        return f"[U+{code:04X}]"
    # Not characters at all, and no valid HTML.
    return f"[U+{code:04X}]" if code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF else character


def size(size_bytes: float) -> str:
    """Decimal units, as models are quoted: `2.99 GB`; a minus sign in front of what was saved."""
    sign, value = ("−" if size_bytes < 0 else ""), abs(float(size_bytes))
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            return f"{sign}{value:,.0f} {unit}" if unit == "bytes" else f"{sign}{three_digits(value)} {unit}"
        value /= 1000
    raise AssertionError("unreachable")


def size_in(most: float) -> Callable[[float], str]:
    """Writes sizes in the unit that suits the largest: the ticks of an axis."""
    factor, unit = next(
        ((factor, unit) for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= factor),
        (1.0, "bytes"),
    )
    return lambda value: f"{value / factor:,g} {unit}" if value else "0"


def three_digits(value: float) -> str:
    """Three digits that count, no exponent where people would not write one."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.2e}"
    return f"{float(f'{value:.3g}'):#.3g}"


def percent(share: float) -> str:
    """A share of 1, e.g. `97.4 %`; only all of it is 100."""
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    shown = f"{share * 100:.1f}"
    return (">99.9 %" if shown == "100.0" else "<0.1 %") if shown in ("100.0", "0.0") else f"{shown} %"


def with_error(value: float, stderr: float) -> str:
    """A value and its standard error, to two digits of the latter."""
    if not stderr:
        return three_digits(value)
    decimals = min(MOST_DECIMALS, max(0, 1 - math.floor(math.log10(abs(stderr)))))
    return f"{value:,.{decimals}f} ± {stderr:,.{decimals}f}"


def tick(value: float) -> str:
    """A round number beside an axis."""
    return f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:g}"


def code_spans(text: str) -> Markup:
    """Text as markup, what stands in backticks as code."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return escape(visible(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part)
        for index, part in enumerate(parts)
    )


def count(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
