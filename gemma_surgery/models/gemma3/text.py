"""The text decoder of Gemma 3.

Source: the Gemma 3 technical report (arXiv 2503.19786) and `modeling_gemma3.py` of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
from mlx.nn.layers.base import Module

from gemma_surgery import ops
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.models.gemma3.config import TextConfig
from gemma_surgery.models.kv_cache import KVCache, Sight
from gemma_surgery.models.layers import Linear, RMSNorm, rope_periods
from gemma_surgery.models.weights import Weights


class Attention(Module):
    """Grouped-query attention with normalised queries and keys; local or global by the layer's index."""

    def __init__(self, weights: Weights, prefix: str, config: TextConfig, is_global: bool) -> None:
        super().__init__()
        self.q_proj = Linear(weights, f"{prefix}self_attn.q_proj")
        self.k_proj = Linear(weights, f"{prefix}self_attn.k_proj")
        self.v_proj = Linear(weights, f"{prefix}self_attn.v_proj")
        self.o_proj = Linear(weights, f"{prefix}self_attn.o_proj")
        self.q_norm = RMSNorm(weights, f"{prefix}self_attn.q_norm.weight", config.norm_eps)
        self.k_norm = RMSNorm(weights, f"{prefix}self_attn.k_norm.weight", config.norm_eps)
        rope = config.global_rope if is_global else config.local_rope
        self._periods = rope_periods(config.head_dim, rope.theta, rope.factor)
        self._heads, self._kv_heads, self._dim = config.num_heads, config.num_kv_heads, config.head_dim
        self._scale = config.attention_scale

    def __call__(self, x: mx.array, cache: KVCache, sight: Sight) -> mx.array:
        """Normalised hidden states `[B, T, E]` to the same shape; the cache grows by T tokens."""
        queries = self._rotated(self.q_norm(self._split(self.q_proj(x), self._heads)), cache.offset)
        keys = self._rotated(self.k_norm(self._split(self.k_proj(x), self._kv_heads)), cache.offset)
        values = self._split(self.v_proj(x), self._kv_heads).transpose(0, 2, 1, 3)
        mixed = cache.attend(queries, keys, values, self._scale, sight)
        return self.o_proj(mixed.transpose(0, 2, 1, 3).flatten(2))

    def _split(self, x: mx.array, heads: int) -> mx.array:
        return x.reshape(*x.shape[:2], heads, self._dim)

    def _rotated(self, x: mx.array, offset: int) -> mx.array:
        return ops.rope(x.transpose(0, 2, 1, 3), self._periods, offset)


class MLP(Module):
    """`down(gelu(gate(x)) * up(x))`."""

    def __init__(self, weights: Weights, prefix: str) -> None:
        super().__init__()
        self.gate_proj = Linear(weights, f"{prefix}mlp.gate_proj")
        self.up_proj = Linear(weights, f"{prefix}mlp.up_proj")
        self.down_proj = Linear(weights, f"{prefix}mlp.down_proj")

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., E]` to the same shape."""
        return self.down_proj(ops.gated_gelu(self.gate_proj(x), self.up_proj(x)))


class DecoderLayer(Module):
    """Attention and MLP, each normalised before and after, each added to the residual."""

    def __init__(self, weights: Weights, prefix: str, config: TextConfig, is_global: bool) -> None:
        super().__init__()
        self.self_attn = Attention(weights, prefix, config, is_global)
        self.mlp = MLP(weights, prefix)

        def norm(name: str) -> RMSNorm:
            return RMSNorm(weights, f"{prefix}{name}_layernorm.weight", config.norm_eps)

        self.input_layernorm, self.post_attention_layernorm = norm("input"), norm("post_attention")
        self.pre_feedforward_layernorm = norm("pre_feedforward")
        self.post_feedforward_layernorm = norm("post_feedforward")

    def __call__(self, x: mx.array, cache: KVCache, sight: Sight) -> mx.array:
        """Hidden states `[B, T, E]` to the same shape; the cache grows by T tokens."""
        mixed = self.self_attn(self.input_layernorm(x), cache, sight)
        x = self.post_attention_layernorm.added_to(x, mixed)
        return self.post_feedforward_layernorm.added_to(x, self.mlp(self.pre_feedforward_layernorm(x)))


class TextDecoder(Module):
    """All decoder layers and the final norm."""

    def __init__(self, weights: Weights, family: Gemma3, config: TextConfig) -> None:
        super().__init__()
        self.layers = [
            DecoderLayer(weights, family.layer_prefix(index), config, is_global)
            for index, is_global in enumerate(config.is_global)
        ]
        self.norm = RMSNorm(weights, f"{family.text_prefix}norm.weight", config.norm_eps)

    def __call__(
        self, x: mx.array, cache: Sequence[KVCache], image_blocks: mx.array | None = None
    ) -> mx.array:
        """Hidden states of T tokens after those in the cache.

        Args:
            x: scaled embeddings `[B, T, E]`.
            cache: one per layer; grows by T tokens.
            image_blocks: int32 `[T]`, 0 for text, else the number of the image a token belongs to.

        Returns:
            `[B, T, E]`, after the final norm.
        """
        # Layers of one kind share their sight: they have all seen the same tokens.
        sights: dict[int | None, Sight] = {}
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            if layer_cache.window not in sights:
                sights[layer_cache.window] = layer_cache.sight(x.shape[1], image_blocks)
            x = layer(x, layer_cache, sights[layer_cache.window])
        return self.norm(x)
