"""Ops on matrices in MLX's affine format.

Letters: V rows of a table (vocabulary), V0 original token ids, E columns (model width), k chosen rows;
`...` any leading shape, also none and also empty.
"""

from __future__ import annotations

import mlx.core as mx

from gemma_surgery._native import ext
from gemma_surgery.ops.common import BITS, GROUP_SIZE, Quantized, Stream, chosen_by, largest, on, on_gpu

# Of the selecting kernel on a GPU.
MOST_CHOICES_ON_GPU = 256


def gather_embed(
    ids: mx.array,
    token_map: mx.array | None,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    scale: float = 1.0,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    dtype: mx.Dtype | None = None,
    stream: Stream = None,
) -> mx.array:
    """Embeddings of token ids: map, gather, decode and scale in one pass over the rows that are asked for.

    Args:
        ids: integers `[...]`.
        token_map: int32 `[V0]`, the row of each original id; None when ids are rows.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        scale: factor on every value.
        group_size: columns that share a scale.
        bits: per code.
        dtype: of the result; that of `scales` when None.
        stream: stream or device.

    Returns:
        `[..., E]`. Each value is `(code * scale + bias) * scale`, each operation in float32, then rounded
        once: for float32 and `scale` 1 the same as `mx.dequantize`, else nearer to the true value. An id that
        is computed lazily and has no row, or is mapped to none, gives a row of NaN.

    Raises:
        ValueError: shapes or dtypes do not fit, or an id whose value is known has no row.
    """
    return ext.gather_embed(ids, token_map, weight, scales, biases, scale, group_size, bits, dtype, stream)


def quantized_linear(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    bias: mx.array | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    activations: str = "full",
    stream: Stream = None,
) -> mx.array:
    """`x @ W^T + bias` with a quantized W, as `mx.quantized_matmul(..., transpose=True)`.

    Args:
        x: `[..., E]`; rows with one stride between them are read in place.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`, of any dtype that x may have.
        biases: like `scales`.
        bias: `[V]`.
        group_size: columns that share a scale.
        bits: per code.
        activations: on the CPU, the bits of x that enter, by group: ``full`` (24 for float32, 16 for the
            halves), ``int16`` or ``int8``. On normally distributed float32 rows their RMS error is 3e-7,
            7e-5 and 6e-3 of the result's (`bench/activation_error.py`). A GPU always takes all.
        stream: stream or device.

    Returns:
        `[..., V]` of the dtype of x, summed in float32 and rounded once (once more where there is a
        bias). On the CPU a row depends on its own row of x alone, not on the number of rows, on threads or
        on the instruction set. Gradients flow to x and bias, not to the matrix.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if on_gpu(stream):
        with on(stream):
            y = mx.quantized_matmul(x, weight, scales, biases, True, group_size, bits)
            return y if bias is None else y + bias
    return ext.quantized_linear(x, weight, scales, biases, bias, group_size, bits, activations, stream)


def tied_logits(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    softcap: float | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    dtype: mx.Dtype | None = None,
    stream: Stream = None,
) -> mx.array:
    """Logits of a tied head, `softcap * tanh(h @ W^T / softcap)`.

    Args:
        h: hidden states `[..., E]`.
        weight: packed codes `[V, E * bits / 32]`, uint32; a table with a row that stands for no token goes in
            without it, as `weight[1:]`.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        softcap: bound on the logits; none when None.
        group_size: columns that share a scale.
        bits: per code.
        dtype: of the result; that of h when None.
        stream: stream or device.

    Returns:
        `[..., V]`, summed in float32 and rounded once.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return ext.tied_logits(h, weight, scales, biases, softcap, group_size, bits, dtype, stream)


def tied_argmax(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    inverse_map: mx.array | None = None,
    softcap: float | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]:
    """The largest logit of a tied head and its id; the logits are never written.

    Args:
        h: hidden states `[..., E]`.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        inverse_map: int32 `[V]`, the original id of each row; None when rows are ids.
        softcap: bound on the logits; none when None.
        group_size: columns that share a scale.
        bits: per code.
        stream: stream or device.

    Returns:
        values float32 `[...]` and ids int32 `[...]`. Of equal logits the lower row wins; NaN wins over all.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return ext.tied_argmax(h, weight, scales, biases, inverse_map, softcap, group_size, bits, stream)


def tied_choice(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    ids: mx.array,
    softcap: float | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]:
    """The token that greedy decoding takes and its log-probability, among the rows that may be chosen.

    Args:
        h: hidden states `[..., E]`.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        ids: int32 `[V]`, the id of each row; -1 for a row that is never chosen and has no probability.
        softcap: bound on the logits; none when None.
        group_size: columns that share a scale.
        bits: per code.
        stream: stream or device.

    Returns:
        ids int32 `[...]` and log-probabilities float32 `[...]`. Of equal logits the lower row wins. On the
        CPU the head is read once and no logit is written; on a GPU MLX's ops compute it from the logits.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if on_gpu(stream):
        logits = ext.tied_logits(h, weight, scales, biases, softcap, group_size, bits, mx.float32, stream)
        with on(stream):
            return chosen_by(logits, ids)
    return ext.tied_choice(h, weight, scales, biases, ids, softcap, group_size, bits, stream)


def tied_topk(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    k: int,
    inverse_map: mx.array | None = None,
    softcap: float | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]:
    """The k largest logits of a tied head and their ids; the logits are never written.

    Args:
        h: hidden states `[..., E]`.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        k: 1 to V.
        inverse_map: int32 `[V]`, the original id of each row; None when rows are ids.
        softcap: bound on the logits; none when None.
        group_size: columns that share a scale.
        bits: per code.
        stream: stream or device.

    Returns:
        values float32 `[..., k]`, largest first, and ids int32 `[..., k]`. Equal logits come in the order of
        their rows, NaN before all.

    Raises:
        ValueError: shapes or dtypes do not fit, or k is not between 1 and V.
    """
    if on_gpu(stream) and k > MOST_CHOICES_ON_GPU:
        logits = ext.tied_logits(h, weight, scales, biases, softcap, group_size, bits, mx.float32, stream)
        with on(stream):
            return largest(logits, k, inverse_map)
    return ext.tied_topk(h, weight, scales, biases, k, inverse_map, softcap, group_size, bits, stream)


def tied_logprob(
    h: mx.array,
    targets: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    softcap: float | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    stream: Stream = None,
) -> tuple[mx.array, mx.array]:
    """Log-probabilities of targets under a tied head, without the `[T, V]` logits.

    Args:
        h: hidden states `[..., E]`.
        targets: integers `[...]`, rows of the table; -1 for a token without a row.
        weight: packed codes `[V, E * bits / 32]`, uint32.
        scales: `[V, E / group_size]`.
        biases: like `scales`.
        softcap: bound on the logits; none when None.
        group_size: columns that share a scale.
        bits: per code.
        stream: stream or device.

    Returns:
        log-probabilities float32 `[...]`, minus infinity for -1, NaN for a target that is computed lazily and
        is no row, and the logarithms of the sums of exponentials over all rows, float32 `[...]`.

    Raises:
        ValueError: shapes or dtypes do not fit, or a target whose value is known is no row.
    """
    return ext.tied_logprob(h, targets, weight, scales, biases, softcap, group_size, bits, stream)


def requantize(
    weight: mx.array,
    scales: mx.array | None = None,
    biases: mx.array | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    columns: mx.array | None = None,
    rows: mx.array | None = None,
    target: tuple[int, int] | mx.Dtype,
    scales_dtype: mx.Dtype | None = None,
    refine: bool = False,
    stream: Stream = None,
) -> mx.array | Quantized:
    """Decode a matrix, take rows and columns and encode the result, a few rows at a time.

    Groups that move whole between equal encodings are copied as they are.

    Args:
        weight: dense `[R, C]`, or packed codes `[R, C * bits / 32]` when there are scales.
        scales: `[R, C / group_size]`, None for a dense matrix.
        biases: like `scales`.
        group_size: of the source; unused for a dense one.
        bits: of the source; unused for a dense one.
        columns: integers `[C']`, -1 for a column of zeros; None: all.
        rows: integers `[R']`, -1 for a row of zeros; None: all.
        target: `(group_size, bits)`, or the dtype of a dense result.
        scales_dtype: of quantized results; that of the source when None.
        refine: search for a better scale and bias of each group by least squares.
        stream: stream or device.

    Returns:
        The dense `[R', C']`, or weight, scales and biases. Codes are the nearest for the scales as stored,
        columns of zeros are exactly zero, and the bytes are the same on every CPU and thread count, and
        those of a surgery.

    Raises:
        ValueError: shapes or dtypes do not fit, or an index whose value is known is outside the matrix.
        RuntimeError: where the stream is waited for: another index is outside the matrix, or a value is not
            finite or does not fit the target's dtype. All parts of the result are then NaN or set bits.
    """
    if isinstance(target, tuple):
        size, width, dtype = *target, scales_dtype
    else:
        size, width, dtype = 0, 0, target
    if refine and on_gpu(stream):
        stream = mx.cpu  # the search is in float64, which Metal lacks
    parts = ext.requantize_arrays(
        weight, scales, biases, group_size, bits, columns, rows, size, width, dtype, refine, stream
    )
    return parts[0] if len(parts) == 1 else (parts[0], parts[1], parts[2])
