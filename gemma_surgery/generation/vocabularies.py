"""Which ids a model knows, and how the vocabularies of two models relate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from gemma_surgery.checkpoint.wording import listing
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model


def known_ids(model: Gemma3Model) -> np.ndarray:
    """Booleans `[V]`: the ids that have a row of their own, i.e. were not pruned."""
    rows = np.asarray(model.rows.to_rows(mx.arange(model.config.text.vocab_size, dtype=mx.int32)))
    if model.rows.kept is None:
        return np.ones(rows.shape, bool)
    kept: np.ndarray = np.asarray(model.rows.kept)[rows]
    return kept


def ids_of_rows(model: Gemma3Model) -> np.ndarray:
    """int64 `[R]`: the id that each row of the logits stands for, -1 where it stands for none."""
    ids = np.array(model.rows.to_ids(mx.arange(model.rows.size, dtype=mx.int32)), np.int64)
    if model.rows.kept is not None:
        ids[~np.asarray(model.rows.kept)] = -1
    return ids


def rows_in(other: Gemma3Model, model: Gemma3Model) -> np.ndarray:
    """int64 `[R]`: for each row of `model` the row of `other` with the same id, -1 where `other` has none."""
    row_of_id = np.full(max(other.config.text.vocab_size, model.config.text.vocab_size), -1, np.int64)
    other_ids = ids_of_rows(other)
    has_id = other_ids >= 0
    row_of_id[other_ids[has_id]] = np.flatnonzero(has_id)
    ids = ids_of_rows(model)
    return np.where(ids >= 0, row_of_id[ids], -1)


def check_same_vocabulary(target: Tokenizer, draft: Tokenizer, num_ids: int) -> None:
    """Check that two tokenizers mean the same by an id, as far as both have it; either may lack tokens.

    Args:
        target: one tokenizer.
        draft: the other.
        num_ids: ids to compare, from 0 on.

    Raises:
        SurgeryError: they differ, naming some of the tokens.
    """
    target_tokens, draft_tokens = _tokens(target, num_ids), _tokens(draft, num_ids)
    target_ids = {token: index for index, token in target_tokens.items()}
    different = [
        token
        for index, token in draft_tokens.items()
        if target_tokens.get(index, token) != token or target_ids.get(token, index) != index
    ]
    if different or not draft_tokens.keys() & target_tokens.keys():
        raise SurgeryError(
            "speculative",
            "need a draft model whose token ids mean the same as the main model's, got other ids for "
            + (listing(different) if different else "every token"),
            "draft with a smaller checkpoint of the same family, not with one whose ids were renumbered",
        )


def _tokens(tokenizer: Tokenizer, num_ids: int) -> dict[int, str]:
    named = ((index, tokenizer.token_of(index)) for index in range(num_ids))
    return {index: token for index, token in named if token is not None}
