"""The few kinds of layers that every part of the models is made of, built straight from stored tensors."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from mlx.nn.layers.base import Module

from gemma_surgery.models.weights import Weights
from gemma_surgery.surgery.encoding import Quantized, companion

GELU_SLOPE = math.sqrt(2 / math.pi)


class Matrix(Module):
    """A stored matrix `[rows, cols]`, dense or quantized, that multiplies or gives up rows.

    Args:
        weights: where the tensors come from.
        name: full name of the `.weight` tensor.
    """

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        encoding = weights.encoding(name)
        self._packing: tuple[int, int, str] | None = None
        if isinstance(encoding, Quantized):
            mode = "affine" if encoding.has_biases else encoding.mode
            self._packing = encoding.group_size, encoding.bits, mode
            self.weight = weights.stored(name)
            self.scales = weights.stored(companion(name, "scales"))
            self.biases = None
            if encoding.has_biases:
                self.scales = self.scales.astype(weights.dtype)
                self.biases = weights.values(companion(name, "biases"))
        else:
            self.weight = weights.values(name)

    def product(self, x: mx.array) -> mx.array:
        """`x @ matrix^T`: `[..., cols]` -> `[..., rows]`."""
        if self._packing is None:
            return x @ self.weight.T
        return mx.quantized_matmul(x, self.weight, self.scales, self.biases, True, *self._packing)

    def take(self, rows: mx.array) -> mx.array:
        """The rows of the given indices: `[...]` -> `[..., cols]`; only these are read and decoded."""
        if self._packing is None:
            return self.weight[rows]
        biases = None if self.biases is None else self.biases[rows]
        return mx.dequantize(self.weight[rows], self.scales[rows], biases, *self._packing)


class Linear(Module):
    """`x @ weight^T + bias`, `[..., in]` -> `[..., out]`; the bias is there when the checkpoint has one.

    Args:
        weights: where the tensors come from.
        name: the module path: `name.weight` and perhaps `name.bias`.
    """

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.matrix = Matrix(weights, f"{name}.weight")
        # Not to be mixed up with `biases`, the zero offsets of quantized groups.
        self.bias = weights.values(f"{name}.bias") if f"{name}.bias" in weights else None

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., in]` -> `[..., out]`."""
        y = self.matrix.product(x)
        return y if self.bias is None else y + self.bias


class RMSNorm(Module):
    """Gemma 3's norm over the last axis: normalised and multiplied by `1 + weight` in float32, then rounded.

    Adding one in float32 matters: in bfloat16 `1 + w` loses every `w` below 2^-8.
    """

    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        super().__init__()
        self.scale = 1.0 + weights.exact(name)
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """The same shape and dtype."""
        return mx.fast.rms_norm(x.astype(mx.float32), self.scale, self._eps).astype(x.dtype)


class LayerNorm(Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = weights.exact(f"{name}.weight"), weights.exact(f"{name}.bias")
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """The same shape and dtype."""
        return mx.fast.layer_norm(x.astype(mx.float32), self.weight, self.bias, self._eps).astype(x.dtype)


def gelu_tanh(x: mx.array) -> mx.array:
    """GELU in its tanh form (Hendrycks and Gimpel, 2016), computed in float32 as PyTorch does."""
    y = x.astype(mx.float32)
    return (0.5 * y * (1 + mx.tanh(GELU_SLOPE * (y + 0.044715 * y * y * y)))).astype(x.dtype)


def rope_periods(dims: int, theta: float, factor: float) -> mx.array:
    """Positions per radian of each pair of dimensions, float32 `[dims / 2]`.

    Computed in float64: MLX's own frequencies are off by 1e-6, which is 0.1 radian at position 100,000.
    """
    return mx.array((factor * np.float64(theta) ** (np.arange(0, dims, 2) / dims)).astype(np.float32))
