"""Whether a cut vocabulary still covers ordinary text, told from the tokens alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import orjson

from gemma_surgery.surgery.tokenizer import TokenizerFile

Mask = npt.NDArray[np.bool_]

# Below this share a model stumbles in ordinary sentences: Gemma-Prune's first attempt, 80,000 tokens out of a
# dictionary, lacked tokens such as "▁I" and wrote nonsense.
LEAST_COVERAGE = 0.995
NAMED = 8


@dataclass(frozen=True)
class Coverage:
    """How much of the built-in passages a vocabulary can write as the model was taught to.

    Attributes:
        share: of their tokens, 0 to 1, among those that the whole vocabulary has.
        missing: the most frequent tokens that are pruned.
    """

    share: float
    missing: tuple[str, ...]


def coverage(tokenizer: TokenizerFile, keep: Mask) -> Coverage:
    """Weigh the kept tokens by how often they occur.

    Args:
        tokenizer: the original one.
        keep: bool `[num_ids]`.
    """
    counts = _common_tokens()
    ids = {token: tokenizer.find(token) for token in counts}
    known = {token: token_id for token, token_id in ids.items() if token_id is not None}
    missing = [token for token, token_id in known.items() if not keep[token_id]]
    total = sum(counts[token] for token in known)
    lost = sum(counts[token] for token in missing)
    return Coverage(1 - lost / total if total else 1.0, tuple(missing[:NAMED]))


@lru_cache(maxsize=1)
def _common_tokens() -> dict[str, int]:
    """Tokens of Gemma 3 in the built-in passages with their counts, the most frequent first."""
    data = (resources.files("gemma_surgery.steps") / "common_tokens.json").read_bytes()
    counts: dict[str, int] = orjson.loads(data)
    return counts
