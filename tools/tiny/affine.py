"""MLX's affine 4-bit quantization in torch: what the weights become when the model is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BITS = 4
GROUP_SIZE = 64


def round_trip(weight: torch.Tensor) -> torch.Tensor:
    """`weight` quantized and dequantized along its last dimension, scales and biases kept in bfloat16.

    The grid is MLX's: the end of the range that is larger in magnitude is met exactly, and so is zero.
    """
    groups = weight.detach().float().bfloat16().float().unflatten(-1, (-1, GROUP_SIZE))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    bins = 2**BITS - 1
    scale = ((high - low) / bins).clamp(min=1e-7)
    low_is_edge = low.abs() > high.abs()
    scale = torch.where(low_is_edge, scale, -scale)
    edge = torch.where(low_is_edge, low, high)
    steps = torch.round(edge / scale)
    scale = torch.where(steps != 0, edge / torch.where(steps != 0, steps, 1.0), scale)
    bias = torch.where(steps != 0, edge, 0.0)
    codes = torch.round((groups - bias) / scale).clamp(0, bins)
    return (codes * scale.bfloat16().float() + bias.bfloat16().float()).flatten(-2).to(weight.dtype)


def quantizable(model: nn.Module) -> list[nn.Parameter]:
    """Weights that the 4-bit layout packs: linears and embeddings whose width a group divides."""
    modules = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.Embedding))]
    # The tied head is the embedding's own parameter: once is enough.
    unique = {id(module.weight): module.weight for module in modules}
    return [weight for weight in unique.values() if weight.shape[-1] % GROUP_SIZE == 0]


@contextmanager
def rounded(model: nn.Module, quantized: bool) -> Iterator[None]:
    """Within: the weights as stored, bfloat16 or (`quantized`) 4-bit; gradients go to the exact ones."""
    packed = {id(weight) for weight in quantizable(model)} if quantized else set()
    exact = [(weight, weight.data) for weight in model.parameters()]
    for weight, data in exact:
        weight.data = round_trip(data) if id(weight) in packed else data.bfloat16().to(data.dtype)
    try:
        yield
    finally:
        for weight, data in exact:
            weight.data = data
