"""Every op in plain MLX, computed in float32: what the kernels are tested against, and slow.

Same arguments as in `quantized` and `floats`; indices are not checked.
"""

from __future__ import annotations

import math

import mlx.core as mx

from gemma_surgery.ops.common import BITS, GROUP_SIZE, Quantized, Stream, chosen_by, largest, on

GELU_SLOPE = math.sqrt(2 / math.pi)


def _dense(weight: mx.array, scales: mx.array, biases: mx.array, group_size: int, bits: int) -> mx.array:
    return mx.dequantize(
        weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group_size, bits=bits
    )


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
    """See `quantized.gather_embed`."""
    with on(stream):
        rows = ids if token_map is None else token_map[ids]
        values = _dense(weight[rows], scales[rows], biases[rows], group_size, bits) * scale
        return values.astype(dtype or scales.dtype)


def quantized_linear(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    bias: mx.array | None = None,
    *,
    group_size: int = GROUP_SIZE,
    bits: int = BITS,
    stream: Stream = None,
) -> mx.array:
    """See `quantized.quantized_linear`."""
    with on(stream):
        y = x.astype(mx.float32) @ _dense(weight, scales, biases, group_size, bits).T
        return (y if bias is None else y + bias.astype(mx.float32)).astype(x.dtype)


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
    """See `quantized.tied_logits`."""
    with on(stream):
        logits = h.astype(mx.float32) @ _dense(weight, scales, biases, group_size, bits).T
        if softcap is not None:
            logits = softcap * mx.tanh(logits / softcap)
        return logits.astype(dtype or h.dtype)


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
    """See `quantized.tied_topk`."""
    logits = tied_logits(
        h, weight, scales, biases, softcap, group_size=group_size, bits=bits, dtype=mx.float32, stream=stream
    )
    with on(stream):
        return largest(logits, k, inverse_map)


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
    """See `quantized.tied_argmax`."""
    logits = tied_logits(
        h, weight, scales, biases, softcap, group_size=group_size, bits=bits, dtype=mx.float32, stream=stream
    )
    with on(stream):
        rows = mx.argmax(logits, axis=-1).astype(mx.int32)
        return logits.max(axis=-1), rows if inverse_map is None else inverse_map[rows]


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
    """See `quantized.tied_choice`."""
    logits = tied_logits(
        h, weight, scales, biases, softcap, group_size=group_size, bits=bits, dtype=mx.float32, stream=stream
    )
    with on(stream):
        return chosen_by(logits, ids)


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
    """See `quantized.tied_logprob`."""
    logits = tied_logits(
        h, weight, scales, biases, softcap, group_size=group_size, bits=bits, dtype=mx.float32, stream=stream
    )
    with on(stream):
        sums = mx.logsumexp(logits, axis=-1)
        chosen = mx.take_along_axis(logits, mx.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return mx.where(targets < 0, -mx.inf, chosen - sums), sums


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
    stream: Stream = None,
) -> mx.array | Quantized:
    """See `quantized.requantize`; codes are for the scales before their rounding, as in `mx.quantize`."""
    with on(stream):
        values = weight.astype(mx.float32)
        if scales is not None and biases is not None:
            values = _dense(weight, scales, biases, group_size, bits)
        for axis, indices in enumerate((rows, columns)):
            if indices is not None:
                taken = mx.take(values, mx.maximum(indices, 0), axis=axis)
                values = mx.where(mx.expand_dims(indices < 0, 1 - axis), 0.0, taken)
        if not isinstance(target, tuple):
            return values.astype(target)
        dtype = scales_dtype or (weight if scales is None else scales).dtype
        packed, *parts = mx.quantize(values, group_size=target[0], bits=target[1])
        return packed, parts[0].astype(dtype), parts[1].astype(dtype)


def linear(x: mx.array, weight: mx.array, bias: mx.array | None = None, *, stream: Stream = None) -> mx.array:
    """See `floats.linear`."""
    with on(stream):
        # The smaller dtype is exact in the larger one, so that a GPU multiplies in the cheapest way.
        y = x @ weight.T
        return (y if bias is None else y + bias).astype(x.dtype)


def rms_norm(x: mx.array, weight: mx.array | None, eps: float, *, stream: Stream = None) -> mx.array:
    """See `floats.rms_norm`."""
    with on(stream):
        scale = None if weight is None else weight.astype(mx.float32)
        return mx.fast.rms_norm(x.astype(mx.float32), scale, eps).astype(x.dtype)


def add_rms_norm(
    h: mx.array, y: mx.array, weight: mx.array | None, eps: float, *, stream: Stream = None
) -> mx.array:
    """See `floats.add_rms_norm`."""
    with on(stream):
        normed = rms_norm(y.astype(mx.float32), weight, eps)
        return (h.astype(mx.float32) + normed).astype(h.dtype)


def layer_norm(
    x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, *, stream: Stream = None
) -> mx.array:
    """See `floats.layer_norm`."""
    with on(stream):
        scale, shift = (None if part is None else part.astype(mx.float32) for part in (weight, bias))
        return mx.fast.layer_norm(x.astype(mx.float32), scale, shift, eps).astype(x.dtype)


def gelu_tanh(x: mx.array, *, stream: Stream = None) -> mx.array:
    """See `floats.gelu_tanh`."""
    with on(stream):
        y = x.astype(mx.float32)
        return (0.5 * y * (1 + mx.tanh(GELU_SLOPE * (y + 0.044715 * y * y * y)))).astype(x.dtype)


def gated_gelu(gate: mx.array, up: mx.array, *, stream: Stream = None) -> mx.array:
    """See `floats.gated_gelu`."""
    with on(stream):
        return (gelu_tanh(gate.astype(mx.float32)) * up.astype(mx.float32)).astype(gate.dtype)


def rope(x: mx.array, periods: mx.array, offset: int = 0, *, stream: Stream = None) -> mx.array:
    """See `floats.rope`."""
    with on(stream):
        return mx.fast.rope(
            x, 2 * periods.size, traditional=False, base=None, scale=1.0, offset=offset, freqs=periods
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
    """See `floats.attention`."""
    with on(stream):
        num_queries, num_keys = q.shape[2], k.shape[2]
        if not causal and mask is None:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale)
        if causal and window is None and image_blocks is None:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
        if mask is None:
            past = num_keys - num_queries
            positions = mx.arange(past, num_keys)[:, None]
            keys = mx.arange(num_keys)[None]
            mask = keys <= positions
            if image_blocks is not None:
                blocks = mx.concatenate([mx.zeros((past,), mx.int32), image_blocks])
                mask = mask | ((image_blocks[:, None] == blocks[None]) & (image_blocks[:, None] > 0))
            if window is not None:
                mask = mask & (keys > positions - window)
        out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        return mx.where(mask.any(axis=-1, keepdims=True), out, 0.0).astype(q.dtype)
