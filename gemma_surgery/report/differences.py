"""Which words of two texts differ: a longest common subsequence, by bits of long integers.

Source: H. Hyyrö, "Bit-parallel LCS-length computation revisited", 2004. A row of the table is one integer, so
that texts that loop take no longer than others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from gemma_surgery.report.svg import tag

# A word or a sign, and the space behind it; space in front of the first word is a piece without a word.
_PIECE = re.compile(r"([^\W_]+(?:['\u2019][^\W_]+)*|\S|^)(\s*)")
# Of longer texts the rest is left out, and the page says so.
MAX_PIECES = 4000
CUT = ("[…]", "")

Piece = tuple[str, str]


def marked(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts as markup: words that went are `<del>` in the first, new ones `<ins>` in the second."""
    one, other = _pieces(before), _pieces(after)
    kept = common([word for word, _ in one], [word for word, _ in other])
    return _written(one, {i for i, _ in kept}, "del"), _written(other, {j for _, j in kept}, "ins")


def common(one: Sequence[str], other: Sequence[str]) -> list[tuple[int, int]]:
    """The places of a longest common subsequence in both, in ascending order."""
    places: dict[str, int] = {}
    for index, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << index
    every = (1 << len(one)) - 1
    rows = [every]
    for word in other:
        row = rows[-1]
        found = row & places.get(word, 0)
        rows.append(((row + found) | (row - found)) & every)
    pairs: list[tuple[int, int]] = []
    i, j = len(one), len(other)
    while i and j:
        # A zero bit: one more word is common with this word of the first text than without.
        if rows[j] >> (i - 1) & 1:
            i -= 1
        elif rows[j - 1] >> (i - 1) & 1:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        else:
            j -= 1
    return pairs[::-1]


def _pieces(text: str) -> list[Piece]:
    found = [(word, space) for word, space in _PIECE.findall(text) if word or space]
    return found if len(found) <= MAX_PIECES else [*found[:MAX_PIECES], CUT]


def _written(pieces: Sequence[Piece], kept: set[int], name: str) -> Markup:
    parts: list[Markup] = []
    for is_kept, group in groupby(enumerate(pieces), key=lambda item: item[0] in kept or not item[1][0]):
        run = [piece for _, piece in group]
        text = "".join(word + space for word, space in run)
        inside = text.rstrip() if not is_kept else text
        parts.append(tag("span" if is_kept else name, inside))
        if len(inside) < len(text):
            parts.append(tag("span", text[len(inside) :]))
    return Markup("").join(parts)
