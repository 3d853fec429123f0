"""How many bytes one generated token makes the model read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlx.utils import tree_map

if TYPE_CHECKING:
    import mlx.core as mx
    from mlx.nn.layers.base import Module

    from gemma_surgery.models import Gemma3Model


def weight_bytes_per_token(model: Gemma3Model) -> int:
    """Return the bytes of weights that one token reads, as they lie in memory.

    All decoder layers, the head (the embedding, where they are tied), and one row of the embedding. Vision is
    not read. Norms count as float32, in which they are kept.
    """
    table = model.vocabulary.table
    head = table if model.vocabulary.head is None else model.vocabulary.head
    row_bytes = sum(array.nbytes // array.shape[0] for array in _arrays(table))
    return row_bytes + sum(array.nbytes for part in (model.decoder, head) for array in _arrays(part))


def kv_bytes_per_token(model: Gemma3Model, prompt_tokens: int, generation_tokens: int) -> float:
    """Return the bytes of keys and values that one token reads, on average over a generation.

    The first token comes with the prompt; each of the others reads everything before it and itself,
    local layers only their window.

    Args:
        model: keeps keys and values in its own dtype.
        prompt_tokens: tokens before the first generated one, image tokens included.
        generation_tokens: tokens generated, 2 or more.
    """
    text = model.config.text
    token_bytes: int = 2 * text.num_kv_heads * text.head_dim * model.dtype.size
    depths = range(prompt_tokens + 1, prompt_tokens + generation_tokens)
    num_global = sum(text.is_global)
    num_local = text.num_layers - num_global
    held = sum(num_global * depth + num_local * min(depth, text.window) for depth in depths)
    return token_bytes * held / len(depths)


def _arrays(module: Module) -> list[mx.array]:
    found: list[mx.array] = []
    tree_map(found.append, module.parameters())  # type: ignore[no-untyped-call]
    return found
