"""Layers of `mlx.nn` that run our kernels, and `accelerate`, which puts them into a model.

They are subclasses of the layers that they replace, with the same parameters under the same names: weights
load, save and train (LoRA) as before. What is not covered stays as it is and is named with the reason.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import mlx.core as mx
import numpy as np
from mlx.nn.layers import linear, quantized
from mlx.nn.layers.base import Module
from mlx.utils import tree_flatten, tree_unflatten

from gemma_surgery import ops
from gemma_surgery.errors import SurgeryError
from gemma_surgery.ops.common import BITS, GROUP_SIZE

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (32, 64, 128)
FLOATS = (mx.float32, mx.float16, mx.bfloat16)

_Layer = TypeVar("_Layer", bound=Module)


def _adopted(cls: type[_Layer], layer: Module) -> _Layer:
    """A layer of another class with the very parameters and settings of `layer`."""
    new = cls.__new__(cls)
    Module.__init__(new)
    new.__dict__.update(layer.__dict__)
    dict.update(new, layer)
    return new


class QuantizedLinear(quantized.QuantizedLinear):
    """`mlx.nn.QuantizedLinear` on `ops.quantized_linear`.

    Attributes:
        activations: bits of the input that enter on the CPU: ``full``, ``int16`` or ``int8``.
    """

    activations = "full"

    @classmethod
    def from_quantized_linear(cls, layer: quantized.QuantizedLinear) -> QuantizedLinear:
        """The same layer with our kernel; parameters are shared, not copied."""
        return _adopted(cls, layer)

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., in]` -> `[..., out]`."""
        return ops.quantized_linear(
            x,
            self["weight"],
            self["scales"],
            self["biases"],
            self.get("bias"),
            group_size=self.group_size,
            bits=self.bits,
            activations=self.activations,
        )


class QuantizedEmbedding(quantized.QuantizedEmbedding):
    """`mlx.nn.QuantizedEmbedding` on `ops.gather_embed` and `ops.quantized_linear`."""

    @classmethod
    def from_quantized_embedding(cls, layer: quantized.QuantizedEmbedding) -> QuantizedEmbedding:
        """The same layer with our kernels; parameters are shared, not copied."""
        return _adopted(cls, layer)

    def _parts(self) -> tuple[mx.array, mx.array, mx.array]:
        return self["weight"], self["scales"], self["biases"]

    def __call__(self, x: mx.array) -> mx.array:
        """Integers `[...]` -> `[..., dims]`."""
        return ops.gather_embed(x, None, *self._parts(), group_size=self.group_size, bits=self.bits)

    def as_linear(self, x: mx.array) -> mx.array:
        """`[..., dims]` -> `[..., num_embeddings]`."""
        return ops.quantized_linear(x, *self._parts(), group_size=self.group_size, bits=self.bits)


class Linear(linear.Linear):
    """`mlx.nn.Linear` on `ops.linear`."""

    @classmethod
    def from_linear(cls, layer: linear.Linear) -> Linear:
        """The same layer with our kernel; parameters are shared, not copied."""
        return _adopted(cls, layer)

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., in]` -> `[..., out]`."""
        return ops.linear(x, self["weight"], self.get("bias"))


class PrunedEmbedding(Module):
    """A tied embedding whose vocabulary was pruned: takes and gives original token ids.

    Args:
        weight: packed codes `[1 + V, E * bits / 32]`; row 0 stands for all pruned ids and is no token.
        scales: `[1 + V, E / group_size]`.
        biases: like `scales`.
        token_map: int32 `[V0]`, the row of each original id, 0 for pruned ones.
        scale: factor on embeddings, the square root of E in Gemma.
        softcap: bound on the logits.
        group_size: columns that share a scale.
        bits: per code.

    Raises:
        SurgeryError: a row has no id, or an id is mapped outside the table.
    """

    def __init__(
        self,
        weight: mx.array,
        scales: mx.array,
        biases: mx.array,
        token_map: mx.array,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        group_size: int = GROUP_SIZE,
        bits: int = BITS,
    ) -> None:
        super().__init__()
        rows = np.array(token_map)
        if rows.min(initial=0) < 0 or rows.max(initial=0) >= weight.shape[0]:
            raise SurgeryError(
                "PrunedEmbedding",
                f"need rows 0 to {weight.shape[0] - 1} in the token map, got {rows.min()} to {rows.max()}",
            )
        id_of = np.full(weight.shape[0], -1, np.int32)
        # Backwards, so that of two ids on one row the smaller one stays.
        ids = np.flatnonzero(rows)[::-1]
        id_of[rows[ids]] = ids
        if (id_of[1:] < 0).any():
            raise SurgeryError(
                "PrunedEmbedding",
                f"need a token id for every row but 0, got none for row {1 + int(np.argmin(id_of[1:]))}",
            )
        self.weight, self.scales, self.biases = weight, scales, biases
        self.token_map, self.ids = token_map.astype(mx.int32), mx.array(id_of[1:])
        self.scale, self.softcap = scale, softcap
        self.group_size, self.bits = group_size, bits
        self.freeze()

    def _head(self) -> tuple[mx.array, mx.array, mx.array]:
        return self["weight"][1:], self["scales"][1:], self["biases"][1:]

    def __call__(self, ids: mx.array) -> mx.array:
        """Original ids `[...]` -> scaled embeddings `[..., E]`, zeros for pruned ones."""
        table = self["weight"], self["scales"], self["biases"]
        return ops.gather_embed(
            ids, self["token_map"], *table, self.scale, group_size=self.group_size, bits=self.bits
        )

    def logits(self, h: mx.array) -> mx.array:
        """Logits of the kept tokens, `[..., E]` -> `[..., V]`, in the order of `ids`."""
        return ops.tied_logits(h, *self._head(), self.softcap, group_size=self.group_size, bits=self.bits)

    def as_linear(self, h: mx.array) -> mx.array:
        """Logits of all original ids, `[..., E]` -> `[..., V0]`: minus infinity for pruned ones."""
        spread = mx.take(self.logits(h), mx.maximum(self["token_map"] - 1, 0), axis=-1)
        return mx.where(self["token_map"] > 0, spread, -mx.inf)

    def argmax(self, h: mx.array) -> tuple[mx.array, mx.array]:
        """The largest logit and its original id: float32 `[...]`, int32 `[...]`."""
        return ops.tied_argmax(
            h, *self._head(), self["ids"], self.softcap, group_size=self.group_size, bits=self.bits
        )

    def topk(self, h: mx.array, k: int) -> tuple[mx.array, mx.array]:
        """The k largest logits and their original ids: float32 `[..., k]`, int32 `[..., k]`."""
        return ops.tied_topk(
            h, *self._head(), k, self["ids"], self.softcap, group_size=self.group_size, bits=self.bits
        )

    def logprob(self, h: mx.array, targets: mx.array) -> tuple[mx.array, mx.array]:
        """Log-probabilities of original ids, minus infinity for pruned ones, and the log-sums, `[...]`."""
        rows = self["token_map"][targets] - 1
        return ops.tied_logprob(
            h, rows, *self._head(), self.softcap, group_size=self.group_size, bits=self.bits
        )


class Acceleration(NamedTuple):
    """What `accelerate` did.

    Attributes:
        replaced: paths of the layers that run our kernels now.
        kept: paths of quantized and linear layers that stay as they are, with the reason.
    """

    replaced: list[str]
    kept: dict[str, str]


def _obstacle(layer: Any) -> str | None:
    """Why our kernels do not cover a layer."""
    if isinstance(layer, (quantized.QuantizedLinear, quantized.QuantizedEmbedding)):
        if layer.mode != "affine":
            return f"mode `{layer.mode}`"
        if layer.bits not in AFFINE_BITS or layer.group_size not in GROUP_SIZES:
            return f"{layer.bits} bits in groups of {layer.group_size}"
        dtype = layer.scales.dtype
    else:
        dtype = layer.weight.dtype
    return None if dtype in FLOATS else f"dtype {dtype}"


_REPLACEMENTS: dict[type, type] = {
    quantized.QuantizedLinear: QuantizedLinear,
    quantized.QuantizedEmbedding: QuantizedEmbedding,
    linear.Linear: Linear,
}


def accelerate(model: Module) -> Acceleration:
    """Replace the quantized and linear layers of a model by ours, in place.

    On Linux this is what makes a stock MLX model usable; on a GPU dense layers run as before.

    Args:
        model: any `mlx.nn` model whose layers are of the exact classes `QuantizedLinear`,
            `QuantizedEmbedding` or `Linear`; subclasses have reasons of their own and are left alone.

    Returns:
        The paths of what was replaced, and of what was kept and why.
    """
    report = Acceleration([], {})
    replacements: list[tuple[str, Module]] = []
    leaves: Any = tree_flatten(model.leaf_modules(), is_leaf=Module.is_module)
    for path, layer in leaves:
        replacement = _REPLACEMENTS.get(type(layer))
        if replacement is None:
            continue
        obstacle = _obstacle(layer)
        if obstacle is not None:
            report.kept[path] = obstacle
            continue
        replacements.append((path, _adopted(replacement, layer)))
        report.replaced.append(path)
    if replacements:
        model.update_modules(tree_unflatten(replacements))
    return report
