"""The SigLIP tower and the projector that turns its patches into image tokens.

Sources: SigLIP (arXiv 2303.15343); `modeling_siglip.py` and `modeling_gemma3.py` of transformers.
"""

from __future__ import annotations

import math

import mlx.core as mx
from mlx.nn.layers.base import Module

from gemma_surgery import ops
from gemma_surgery.families.gemma3 import PROJECTOR, VISION, Gemma3
from gemma_surgery.models.gemma3.config import VisionConfig
from gemma_surgery.models.layers import LayerNorm, Linear, Matrix, RMSNorm
from gemma_surgery.models.weights import Weights


class PatchEmbedding(Module):
    """Patches to vectors, plus positions; a convolution whose stride is its kernel is one product."""

    def __init__(self, weights: Weights, family: Gemma3, config: VisionConfig) -> None:
        super().__init__()
        kernel = weights.values(family.patch_embedding)
        if kernel.shape[-1] != config.num_channels:
            kernel = kernel.transpose(0, 2, 3, 1)
        self.weight = kernel.reshape(config.hidden_size, -1)
        self.bias = weights.values(family.patch_embedding.replace(".weight", ".bias"))
        table = Matrix(weights, family.position_embedding)
        self.positions = table.take(mx.arange(config.grid**2), weights.dtype)
        self._grid, self._patch = config.grid, config.patch_size

    def __call__(self, pixels: mx.array) -> mx.array:
        """Pixels `[N, S, S, 3]` -> `[N, grid * grid, E]`."""
        n, grid, patch = pixels.shape[0], self._grid, self._patch
        pixels = pixels[:, : grid * patch, : grid * patch].astype(self.weight.dtype)
        patches = pixels.reshape(n, grid, patch, grid, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return ops.linear(patches.reshape(n, grid * grid, -1), self.weight, self.bias) + self.positions


class VisionLayer(Module):
    """A pre-norm transformer block with full attention and biases."""

    def __init__(self, weights: Weights, prefix: str, config: VisionConfig) -> None:
        super().__init__()
        self.q_proj = Linear(weights, f"{prefix}self_attn.q_proj")
        self.k_proj = Linear(weights, f"{prefix}self_attn.k_proj")
        self.v_proj = Linear(weights, f"{prefix}self_attn.v_proj")
        self.out_proj = Linear(weights, f"{prefix}self_attn.out_proj")
        self.fc1, self.fc2 = Linear(weights, f"{prefix}mlp.fc1"), Linear(weights, f"{prefix}mlp.fc2")
        self.layer_norm1 = LayerNorm(weights, f"{prefix}layer_norm1", config.norm_eps)
        self.layer_norm2 = LayerNorm(weights, f"{prefix}layer_norm2", config.norm_eps)
        self._heads = config.num_heads
        self._scale = (config.hidden_size // config.num_heads) ** -0.5

    def __call__(self, x: mx.array) -> mx.array:
        """Patches `[N, grid * grid, E]` to the same shape."""
        y = self.layer_norm1(x)
        queries, keys, values = (self._split(layer(y)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        mixed = ops.attention(queries, keys, values, self._scale)
        x = x + self.out_proj(mixed.transpose(0, 2, 1, 3).flatten(2))
        return x + self.fc2(ops.gelu_tanh(self.fc1(self.layer_norm2(x))))

    def _split(self, x: mx.array) -> mx.array:
        return x.reshape(*x.shape[:2], self._heads, -1).transpose(0, 2, 1, 3)


class Projector(Module):
    """Average pooling of the patch grid, a norm, and one matrix into the decoder's width."""

    def __init__(self, weights: Weights, config: VisionConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(weights, f"{PROJECTOR}mm_soft_emb_norm.weight", config.norm_eps)
        # Stored as [in, out]; rows of outputs are what products read.
        self.weight = mx.contiguous(weights.values(f"{PROJECTOR}mm_input_projection_weight").T)
        self._side = math.isqrt(config.tokens_per_image)
        self._kernel = config.grid // self._side

    def __call__(self, patches: mx.array) -> mx.array:
        """Patches `[N, grid * grid, E]` -> image tokens `[N, P, E]` of the decoder's width."""
        side, kernel = self._side, self._kernel
        grid = patches.reshape(patches.shape[0], side, kernel, side, kernel, -1)
        pooled = grid.mean(axis=(2, 4)).reshape(patches.shape[0], side * side, -1)
        return ops.linear(self.norm(pooled), self.weight)


class VisionEncoder(Module):
    """From pixels to image tokens."""

    def __init__(self, weights: Weights, family: Gemma3, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = PatchEmbedding(weights, family, config)
        self.layers = [
            VisionLayer(weights, family.vision_layer_prefix(index), config)
            for index in range(config.num_layers)
        ]
        self.post_layernorm = LayerNorm(weights, f"{VISION}post_layernorm", config.norm_eps)
        self.projector = Projector(weights, config)

    def __call__(self, pixels: mx.array) -> mx.array:
        """Normalised pixels `[N, S, S, 3]` -> image tokens `[N, P, E]`, not scaled like text embeddings."""
        x = self.embeddings(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.projector(self.post_layernorm(x))
