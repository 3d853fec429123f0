"""The tokens of a vocabulary by script, from the Unicode names of their letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from gemma_surgery.surgery.tokenizer import TokenizerFile

CONTROL = "control tokens"
BYTES = "bytes"
SEVERAL = "several scripts"
SPACES = "spaces and line breaks"
DIGITS = "digits"
SIGNS = "punctuation and signs"

# What stands before the script in the name of a letter.
_FORMS = ("FULLWIDTH", "HALFWIDTH", "MODIFIER", "SMALL", "CIRCLED", "SQUARED", "PARENTHESIZED", "COMBINING")
# Letters that many scripts share, and names that say the block instead of the script.
_NEUTRAL = (
    "SUPERSCRIPT",
    "CARON",
    "INFORMATION",
    "KATAKANA-HIRAGANA",
    "HIRAGANA-KATAKANA",
    "LETTER",
    "MATHEMATICAL",
    "DOUBLE-STRUCK",
    "MICRO",
    "SCRIPT",
    "BLACK-LETTER",
    "LIGATURE",
    "PLANCK",
)
_TWO_WORDS = (
    "OLD",
    "NEW",
    "TAI",
    "LINEAR",
    "CANADIAN",
    "MEETEI",
    "SORA",
    "OL",
    "MEROITIC",
    "SYLOTI",
    "PHAGS-PA",
)
_OWN_NAMES = {
    "CJK": "Han",
    "IDEOGRAPHIC": "Han",
    "FEMININE": "Latin",
    "MASCULINE": "Latin",
    "ANGSTROM": "Latin",
    "KELVIN": "Latin",
    "OHM": "Greek",
}


def tokens_by_script(folder: Path) -> dict[str, int]:
    """Tokens of a folder's tokenizer.json by script, most first; `<unusedN>` tokens are left out.

    Raises:
        SurgeryError: there is no tokenizer, or it is malformed.
    """
    tokenizer = TokenizerFile.read(folder / "tokenizer.json")
    special = set(tokenizer.special_ids.tolist())
    spelled = {token for token in tokenizer.byte_ids.tolist() if token >= 0}
    unused = set(tokenizer.unused_ids.tolist())
    found: Counter[str] = Counter()
    for token_id, token in enumerate(tokenizer.tokens):
        if token is None or token_id in unused:
            continue
        if token_id in spelled:
            found[BYTES] += 1
        elif token_id in special:
            found[CONTROL] += 1
        else:
            found[script(token.replace(tokenizer.space, " "))] += 1
    return dict(found.most_common())


def script(text: str) -> str:
    """The script of a text's letters, or what it is made of where it has none."""
    scripts = {found for found in map(_letter_script, text) if found}
    if scripts:
        return scripts.pop() if len(scripts) == 1 else SEVERAL
    if not text or text.isspace():
        return SPACES
    if any(unicodedata.category(character)[0] == "N" for character in text):
        return DIGITS
    return SIGNS


@cache
def _letter_script(character: str) -> str:
    if unicodedata.category(character)[0] != "L":
        return ""
    return _script_of_name(unicodedata.name(character, "").split())


def _script_of_name(words: Iterable[str]) -> str:
    rest = [word for word in words if word not in _FORMS]
    if not rest or rest[0] in _NEUTRAL:
        return ""
    if rest[0] in _OWN_NAMES:
        return _OWN_NAMES[rest[0]]
    kept = rest[:2] if rest[0] in _TWO_WORDS else rest[:1]
    return " ".join(word.capitalize() for word in kept)
