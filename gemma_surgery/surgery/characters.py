"""Classes of characters, and which of them every token of a vocabulary contains."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gemma_surgery._native import ext

ASCII = 1
NEWLINE = 2
TAB = 4
TYPOGRAPHIC = 8
LATIN = 16
PICTOGRAPH = 32
OTHER = 64

# English text as people write it: no low quotes, guillemets or primes.
TYPOGRAPHIC_CHARACTERS = (
    "‘’“”"  # curly quotes
    "‒–—"  # figure, en and em dash
    "…•·"
    "£€¥¢₹"
    "©®™§¶"
    "°±×÷−≤≥≠≈∞√"
    "→←↑↓↔"
    "½¼¾"
)

# Inclusive ranges of code points. Variation selector 16, the joiner and skin tones only occur inside emoji.
PICTOGRAPH_RANGES = (
    (0x200D, 0x200D),  # zero width joiner
    (0x2600, 0x27BF),  # miscellaneous symbols, dingbats
    (0xFE0F, 0xFE0F),  # variation selector 16
    (0x1F000, 0x1FAFF),  # pictographs, regional indicators (flags), skin tones
)
LATIN_RANGE = (0x00C0, 0x024F)
NUM_CODE_POINTS = 0x110000


def character_table(space: str) -> npt.NDArray[np.uint8]:
    """Return uint8 [0x110000], the class of every code point.

    Args:
        space: the character that stands for a space in surface forms; it counts as ASCII.
    """
    table = np.full(NUM_CODE_POINTS, OTHER, np.uint8)
    first, last = LATIN_RANGE
    table[first : last + 1] = LATIN
    for first, last in PICTOGRAPH_RANGES:
        table[first : last + 1] = PICTOGRAPH
    table[[ord(character) for character in TYPOGRAPHIC_CHARACTERS]] = TYPOGRAPHIC
    table[32:127] = ASCII
    table[ord("\n")] = NEWLINE
    table[ord("\t")] = TAB
    table[ord(space)] = ASCII
    return table


def token_classes(table: ext.TokenTable, space: str) -> npt.NDArray[np.uint8]:
    """Return uint8 [num_ids], the union of the character classes in every token, 0 where there is none.

    Args:
        table: the tokens' surface forms.
        space: the character that stands for a space in them.
    """
    classes = np.empty(table.num_ids, np.uint8)
    table.classes(character_table(space), classes)
    return classes
