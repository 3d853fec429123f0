"""The few kinds of layers that every part of the models is made of, built straight from stored tensors."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from gemma_surgery import ops
from gemma_surgery.models.weights import Weights
from gemma_surgery.ops.common import chosen_by
from gemma_surgery.surgery.encoding import Quantized, companion


class Matrix(Module):
    """A stored matrix `[rows, cols]`, dense or quantized, that multiplies or gives up rows.

    Args:
        weights: where the tensors come from.
        name: full name of the `.weight` tensor.
        rows: numbers of the rows it is to have, which alone are read; None for all.

    Attributes:
        group_size: columns that share a scale; 0 for a dense matrix.
        bits: per code; 0 for a dense matrix.
        biases: of MLX's affine format, which the kernels read; None in others.
    """

    def __init__(self, weights: Weights, name: str, rows: npt.NDArray[np.integer] | None = None) -> None:
        super().__init__()
        encoding = weights.encoding(name)

        def part(role: str) -> mx.array:
            stored = companion(name, role)
            return weights.stored(stored) if rows is None else weights.stored_rows(stored, rows)

        self._activations = weights.activations
        self.group_size = self.bits = 0
        self.biases: mx.array | None = None
        self._mode = "affine"
        self.weight = part("weight")
        if isinstance(encoding, Quantized):
            self.group_size, self.bits = encoding.group_size, encoding.bits
            self.scales = part("scales")
            if encoding.has_biases:
                self.biases = part("biases")
            else:
                self._mode = encoding.mode

    def product(self, x: mx.array, bias: mx.array | None = None) -> mx.array:
        """`x @ matrix^T + bias`: `[..., cols]` -> `[..., rows]`."""
        if not self.bits:
            return ops.linear(x, self.weight, bias)
        if self.biases is not None:
            return ops.quantized_linear(
                x,
                self.weight,
                self.scales,
                self.biases,
                bias,
                group_size=self.group_size,
                bits=self.bits,
                activations=self._activations,
            )
        y = mx.quantized_matmul(
            x, self.weight, self.scales, mode=self._mode, group_size=self.group_size, bits=self.bits
        )
        return y if bias is None else y + bias

    def take(
        self, ids: mx.array, dtype: mx.Dtype, scale: float = 1.0, token_map: mx.array | None = None
    ) -> mx.array:
        """Rows times `scale`: `[...]` -> `[..., cols]`; only these are read and decoded.

        Args:
            ids: int32 row numbers, or with a map what it maps to them.
            dtype: of the result.
            scale: factor on every value.
            token_map: int32 `[V]`.
        """
        if self.biases is not None:
            return ops.gather_embed(
                ids,
                token_map,
                self.weight,
                self.scales,
                self.biases,
                scale,
                group_size=self.group_size,
                bits=self.bits,
                dtype=dtype,
            )
        rows = ids if token_map is None else token_map[ids]
        taken = self.weight[rows]
        if self.bits:
            taken = mx.dequantize(
                taken, self.scales[rows], mode=self._mode, group_size=self.group_size, bits=self.bits
            )
        return (taken.astype(mx.float32) * scale).astype(dtype)

    def choice(self, x: mx.array, ids: mx.array, softcap: float | None) -> tuple[mx.array, mx.array]:
        """The most likely token when this matrix is the head.

        Args:
            x: `[..., cols]`.
            ids: int32 `[rows]`, the id that each row stands for; -1: never chosen.
            softcap: bound on the logits.

        Returns:
            ids int32 and log-probabilities float32, `[...]`.
        """
        if self.biases is not None:
            return ops.tied_choice(
                x,
                self.weight,
                self.scales,
                self.biases,
                ids,
                softcap,
                group_size=self.group_size,
                bits=self.bits,
            )
        return chosen_by(capped(self.product(x).astype(mx.float32), softcap), ids)


def capped(logits: mx.array, softcap: float | None) -> mx.array:
    """`softcap * tanh(logits / softcap)`, or the logits themselves without a bound."""
    return logits if softcap is None else mx.tanh(logits / softcap) * softcap


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
        return self.matrix.product(x, self.bias)


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
        return ops.rms_norm(x, self.scale, self._eps)

    def added_to(self, residual: mx.array, x: mx.array) -> mx.array:
        """`residual + norm(x)`, the same shape and dtype."""
        return ops.add_rms_norm(residual, x, self.scale, self._eps)


class LayerNorm(Module):
    """Layer normalisation over the last axis, computed in float32."""

    def __init__(self, weights: Weights, name: str, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = weights.exact(f"{name}.weight"), weights.exact(f"{name}.bias")
        self._eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        """The same shape and dtype."""
        return ops.layer_norm(x, self.weight, self.bias, self._eps)


def rope_periods(dims: int, theta: float, factor: float) -> mx.array:
    """Positions per radian of each pair of dimensions, float32 `[dims / 2]`.

    Computed in float64: MLX's own frequencies are off by 1e-6, which is 0.1 radian at position 100,000.
    """
    return mx.array((factor * np.float64(theta) ** (np.arange(0, dims, 2) / dims)).astype(np.float32))
