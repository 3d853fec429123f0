"""The kernels as MLX ops, for any MLX project: lazy, on any stream, inside `mx.compile` and `mx.vmap`.

On a CPU stream they run our C++ loops: AVX-512, AVX2, NEON or portable, chosen at run time, on all
processors. On a GPU stream `gather_embed`, `requantize` and the tied heads run our Metal kernels, all
others MLX's own.
`gemma_surgery.ops.plain` has each of them in plain MLX ops: what they are tested against.

Quantized matrices are in MLX's affine format, as `mx.quantize` returns it: `weight` uint32
`[rows, cols * bits / 32]`, `scales` and `biases` `[rows, cols / group_size]` of float32, float16 or
bfloat16, 2, 3, 4, 5, 6 or 8 bits, groups of 32, 64 or 128. Shapes and dtypes are checked when an op is
built (`ValueError`, one sentence), and so are indices whose values are known by then. Of indices that are
computed lazily, one without a row gives NaN in its own place; `requantize` raises `RuntimeError` instead
where its stream is waited for.
"""

from gemma_surgery.ops.floats import (
    add_rms_norm,
    attention,
    gated_gelu,
    gelu_tanh,
    layer_norm,
    linear,
    rms_norm,
    rope,
)
from gemma_surgery.ops.quantized import (
    gather_embed,
    quantized_linear,
    requantize,
    tied_argmax,
    tied_choice,
    tied_logits,
    tied_logprob,
    tied_topk,
)

__all__ = [
    "add_rms_norm",
    "attention",
    "gated_gelu",
    "gather_embed",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "quantized_linear",
    "requantize",
    "rms_norm",
    "rope",
    "tied_argmax",
    "tied_choice",
    "tied_logits",
    "tied_logprob",
    "tied_topk",
]
