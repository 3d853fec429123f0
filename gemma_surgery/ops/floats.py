"""Ops on floating point arrays, where MLX's CPU backend is slow: each one pass over memory.

On a GPU stream they are MLX's own ops, composed as in `plain`. Inputs are float32, float16 or bfloat16;
arithmetic is float32 and a result is rounded once. Nothing depends on the number of threads.

Letters: B batch, T query tokens, S key tokens, H heads, K key heads, D head dim, E columns.
"""

from __future__ import annotations

import mlx.core as mx

from gemma_surgery._native import ext
from gemma_surgery.ops import plain
from gemma_surgery.ops.common import Stream, on_gpu

# Of the attention kernel on a CPU.
LARGEST_HEAD_DIM = 512


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None, *, stream: Stream = None) -> mx.array:
    """`x @ weight^T + bias`.

    Args:
        x: `[..., C]`.
        weight: `[R, C]`, of any floating dtype.
        bias: `[R]`.
        stream: stream or device.

    Returns:
        `[..., R]` of the dtype of x. On the CPU a row depends on its own row of x alone.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return (
        plain.linear(x, weight, bias, stream=stream)
        if on_gpu(stream)
        else ext.linear(x, weight, bias, stream)
    )


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, *, stream: Stream = None) -> mx.array:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis.

    Args:
        x: `[..., E]`.
        weight: `[E]`; None: ones. Gemma stores it less one: pass `1 + w`, added in float32.
        eps: added to the mean of the squares.
        stream: stream or device.

    Returns:
        The same shape and dtype, with the same bits on every instruction set.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return (
        plain.rms_norm(x, weight, eps, stream=stream)
        if on_gpu(stream)
        else ext.rms_norm(x, weight, eps, stream)
    )


def add_rms_norm(
    h: mx.array, y: mx.array, weight: mx.array | None, eps: float, *, stream: Stream = None
) -> mx.array:
    """`h + rms_norm(y)`: the end of a block and the residual stream, without the rounding between.

    Args:
        h: `[..., E]`.
        y: like h.
        weight: `[E]`; None: ones.
        eps: added to the mean of the squares.
        stream: stream or device.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if on_gpu(stream):
        return plain.add_rms_norm(h, y, weight, eps, stream=stream)
    return ext.add_rms_norm(h, y, weight, eps, stream)


def layer_norm(
    x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, *, stream: Stream = None
) -> mx.array:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last axis.

    Args:
        x: `[..., E]`.
        weight: `[E]`; None: ones.
        bias: `[E]`; None: zeros.
        eps: added to the variance.
        stream: stream or device.

    Returns:
        The same shape and dtype, with the same bits on every instruction set.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    if on_gpu(stream):
        return plain.layer_norm(x, weight, bias, eps, stream=stream)
    return ext.layer_norm(x, weight, bias, eps, stream)


def gelu_tanh(x: mx.array, *, stream: Stream = None) -> mx.array:
    """`x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`: GELU in its tanh form.

    Source: Hendrycks and Gimpel, 2016.

    Args:
        x: `[..., E]`.
        stream: stream or device.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: x is not floating point.
    """
    return plain.gelu_tanh(x, stream=stream) if on_gpu(stream) else ext.gelu_tanh(x, stream)


def gated_gelu(gate: mx.array, up: mx.array, *, stream: Stream = None) -> mx.array:
    """`gelu_tanh(gate) * up`, without the rounding between.

    Args:
        gate: `[..., E]`.
        up: like gate.
        stream: stream or device.

    Returns:
        The same shape and dtype.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return plain.gated_gelu(gate, up, stream=stream) if on_gpu(stream) else ext.gated_gelu(gate, up, stream)


def rope(x: mx.array, periods: mx.array, offset: int = 0, *, stream: Stream = None) -> mx.array:
    """Rotary position embedding (Su et al., 2021): pairs `(i, i + dims / 2)` of the first `dims` dimensions.

    Args:
        x: `[B, H, T, D]`, of any strides but a contiguous last axis.
        periods: float32 `[dims / 2]`, positions per radian; infinite where a pair stays as it is.
        offset: position of the first token.
        stream: stream or device.

    Returns:
        The same shape and dtype. On the CPU angles are computed in float64.

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    return (
        plain.rope(x, periods, offset, stream=stream)
        if on_gpu(stream)
        else ext.rope(x, periods, offset, stream)
    )


def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    *,
    causal: bool = False,
    window: int | None = None,
    image_blocks: mx.array | None = None,
    mask: mx.array | None = None,
    stream: Stream = None,
) -> mx.array:
    """`softmax(scale * q @ k^T) @ v` in tiles: `[T, S]` never exists, on the CPU not even as a mask.

    Args:
        q: `[B, H, T, D]`, H a multiple of K. Unless D is a multiple of 8 up to 512, MLX's own ops compute it.
        k: `[B, K, S, D]`.
        v: like k.
        scale: factor on `q @ k^T`.
        causal: the queries are the last T of S tokens and see themselves and what came before.
        window: of a causal mask, how many tokens a query sees, itself included; None: all.
        image_blocks: of a causal mask, int32 `[T]`: 0 for text, else the number of the image; tokens of one
            image see each other, as far as the window allows.
        mask: bool that broadcasts to `[B, H, T, S]`, in place of a causal mask; True: sees.
        stream: stream or device.

    Returns:
        `[B, H, T, D]` of the dtype of q; on the CPU `[B, T, H, D]` in memory. A query that sees no key gives
        zeros. With T up to 8 a row depends on the keys that it sees alone, bit for bit.

    Raises:
        ValueError: shapes or dtypes do not fit, or both kinds of mask are given.
    """
    has_causal_parts = window is not None or image_blocks is not None
    if (mask is not None) if causal else has_causal_parts:
        raise ValueError(
            "[attention] need `window` and `image_blocks` with `causal` and `mask` without, "
            f"got causal={causal}, window={window}, "
            f"{'image blocks' if image_blocks is not None else 'no image blocks'} and "
            f"{'a mask' if mask is not None else 'no mask'}"
        )
    if on_gpu(stream) or q.shape[-1] % 8 or q.shape[-1] > LARGEST_HEAD_DIM:
        return plain.attention(
            q, k, v, scale, causal=causal, window=window, image_blocks=image_blocks, mask=mask, stream=stream
        )
    return ext.attention(q, k, v, scale, causal, window or 0, image_blocks, mask, stream)
