"""Both ends of a Gemma 3: from token ids to vectors, and from hidden states to tokens."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from gemma_surgery import ops
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.models.gemma3.config import TextConfig
from gemma_surgery.models.layers import Matrix, capped
from gemma_surgery.models.weights import MLX_DTYPES, Weights
from gemma_surgery.surgery.encoding import Dense, Encoding


class TokenRows:
    """Which row of the logits stands for which token id.

    Args:
        size: rows R of the output head.
        token_map: int32 `[V]` of a pruned vocabulary, 0 for pruned ids; None when the rows are the ids.
        compact: whether the head has only the kept rows; else it has a row for every id.

    Attributes:
        kept: booleans `[R]`: whether a row stands for a token; None when all do.
    """

    def __init__(self, size: int, token_map: np.ndarray | None = None, compact: bool = False) -> None:
        self.size = size
        self.is_pruned = token_map is not None
        self._row_of: mx.array | None = None
        self._id_of: mx.array | None = None
        self.kept: mx.array | None = None
        if token_map is None:
            return
        if not compact:
            self.kept = mx.array(token_map[:size] > 0)
            return
        id_of = np.full(size, -1, np.int32)
        # Backwards, so that of two ids on one row the smaller one stays.
        ids = np.flatnonzero(token_map)[::-1]
        id_of[token_map[ids]] = ids
        self.kept = mx.array(id_of >= 0)
        self._row_of, self._id_of = mx.array(token_map), mx.array(np.maximum(id_of, 0))

    def to_rows(self, ids: mx.array) -> mx.array:
        """Rows of token ids, int32 of the same shape; 0 for a pruned id of a compact head."""
        return ids if self._row_of is None else self._row_of[ids]

    def to_ids(self, rows: mx.array) -> mx.array:
        """Token ids of rows, int32 of the same shape."""
        return rows if self._id_of is None else self._id_of[rows]


class Vocabulary(Module):
    """The embedding table and the output head, which are one matrix in most checkpoints.

    Args:
        weights: where the tensors come from.
        family: names them.
        config: of the text decoder.
        dtype: of activations.

    Attributes:
        table: the embedding.
        head: an output head of its own, None when tied.
        rows: the vocabulary of the logits.
    """

    def __init__(self, weights: Weights, family: Gemma3, config: TextConfig, dtype: mx.Dtype) -> None:
        super().__init__()
        self.table = Matrix(weights, family.embedding)
        self.head = Matrix(weights, family.head) if family.head in weights else None
        self._dtype, self._vocab_size, self._softcap = dtype, config.vocab_size, config.final_softcap
        token_map = read_token_map(weights, family)
        self._token_map = None if token_map is None else mx.array(token_map)
        self._scale = embed_scale(config, weights, family)
        rows = weights.matrices[family.embedding if self.head is None else family.head].shape[0]
        self.rows = TokenRows(rows, token_map, compact=rows != config.vocab_size)
        # tied_logprob sums over all rows: it can do without the first, which stands for no token.
        kept = None if self.rows.kept is None else np.asarray(self.rows.kept)
        self._skipped_rows = 0 if kept is None or kept.all() else 1
        self._sums_whole_rows = kept is None or bool(kept[self._skipped_rows :].all())

    def embed(self, tokens: mx.array) -> mx.array:
        """Scaled embeddings of token ids.

        Args:
            tokens: int32 `[B, T]` original ids; image tokens get a vector that is to be overwritten.

        Returns:
            `[B, T, E]`; zero for an id that was pruned.
        """
        return self.table.take(tokens, self._dtype, self._scale, self._token_map)

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits over the head's rows, `[..., E]` -> `[..., R]`; minus infinity for rows of no token."""
        logits = capped(self._matrix.product(hidden), self._softcap)
        return logits if self.rows.kept is None else mx.where(self.rows.kept, logits, -mx.inf)

    def choice(self, hidden: mx.array, ids: mx.array) -> tuple[mx.array, mx.array]:
        """The most likely token, without the logits where the head is quantized.

        Args:
            hidden: `[..., E]`, after the final norm.
            ids: int32 `[R]`, the id of each row of the head; -1 for one that is not to be chosen.

        Returns:
            ids int32 and log-probabilities among the rows that may be chosen, float32, both `[...]`.
        """
        return self._matrix.choice(hidden, ids, self._softcap)

    def log_probs(self, hidden: mx.array, tokens: mx.array) -> mx.array:
        """Log-probabilities of tokens, without the logits where the head is quantized.

        Args:
            hidden: `[..., E]`, after the final norm.
            tokens: int32 `[...]` original ids.

        Returns:
            float32 `[...]`, minus infinity for a pruned id.
        """
        rows = self.rows.to_rows(tokens)
        matrix = self._matrix
        if matrix.biases is None or not self._sums_whole_rows:
            logits = self.logits(hidden).astype(mx.float32)
            chosen = mx.take_along_axis(logits, rows[..., None], axis=-1)[..., 0]
            return chosen - mx.logsumexp(logits, axis=-1)
        skipped = self._skipped_rows
        return ops.tied_logprob(
            hidden,
            mx.maximum(rows - skipped, -1),
            matrix.weight[skipped:],
            matrix.scales[skipped:],
            matrix.biases[skipped:],
            self._softcap,
            group_size=matrix.group_size,
            bits=matrix.bits,
        )[0]

    def full_logits(self, logits: mx.array) -> mx.array:
        """Logits over original ids, `[..., R]` -> `[..., V]`: minus infinity for pruned ids."""
        if self._token_map is None or self.rows.size == self._vocab_size:
            return logits
        spread = mx.take(logits, self._token_map, axis=-1)
        return mx.where(self._token_map > 0, spread, -mx.inf)

    @property
    def _matrix(self) -> Matrix:
        return self.table if self.head is None else self.head


def stored_dtype(encoding: Encoding) -> str:
    """What values are decoded to: the dtype of a dense matrix, or of the scales of a quantized one."""
    return encoding.dtype if isinstance(encoding, Dense) else encoding.scale_dtype


def embed_scale(text: TextConfig, weights: Weights, family: Gemma3) -> float:
    """The square root of E in the checkpoint's own precision: 50.5 for 2560 in bfloat16."""
    stored = stored_dtype(weights.encoding(family.embedding))
    return float(np.asarray(mx.array(text.hidden_size**0.5).astype(MLX_DTYPES[stored]).astype(mx.float32)))


def read_token_map(weights: Weights, family: Gemma3) -> np.ndarray | None:
    """The row of each token id, int32 `[V]`, 0 for pruned ids; None for a whole vocabulary.

    Raises:
        SurgeryError: it points outside the table.
    """
    if family.token_map not in weights:
        return None
    token_map = np.asarray(weights.stored(family.token_map).astype(mx.int32))
    rows = weights.matrices[family.embedding].shape[0]
    if token_map.min() < 0 or token_map.max() >= rows:
        raise SurgeryError(
            "model",
            f"need rows 0 to {rows - 1}, got {token_map.min()} to {token_map.max()} in `{family.token_map}`",
        )
    return token_map
