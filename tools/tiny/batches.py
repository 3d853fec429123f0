"""A batch of samples through the model: padding, masks, image tokens, loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration

from tiny.anatomy import CONFIG, IMAGE_SIZE, IMAGE_TOKEN, image_features
from tiny.pictures import pixels_of
from tiny.samples import Sample

WINDOW = CONFIG["text_config"]["sliding_window"]


@dataclass
class Batch:
    """Padded rows.

    Attributes:
        ids: int64 `[B, T]`, padded right with 0.
        weights: float32 `[B, T]`, how much the prediction of each token counts.
        pixels: float32 `[N, 3, S, S]`, or None without images.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    pixels: torch.Tensor | None


def make_batch(samples: Sequence[Sample], image_size: int = IMAGE_SIZE) -> Batch:
    """Pad `samples` and draw their images at `image_size` pixels."""
    longest = max(len(sample.ids) for sample in samples)
    ids = torch.zeros(len(samples), longest, dtype=torch.long)
    weights = torch.zeros(len(samples), longest)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
        weights[row, : len(sample.ids)] = torch.tensor(sample.weights)
    scenes = [scene for sample in samples for scene in sample.scenes]
    return Batch(ids, weights, pixels_of(scenes, image_size) if scenes else None)


def attention_masks(ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Boolean masks `[B, 1, T, T]`: causal or same image; local layers within the window as well.

    Rows are padded on the right, so no real token ever looks at padding.
    """
    is_image = ids == IMAGE_TOKEN
    starts = is_image & ~torch.nn.functional.pad(is_image, (1, 0))[:, :-1]
    block = torch.where(is_image, starts.long().cumsum(1), 0)
    same_image = (block[:, :, None] == block[:, None, :]) & is_image[:, :, None]
    position = torch.arange(ids.shape[1])
    distance = position[:, None] - position[None, :]
    full = (distance >= 0) | same_image
    return {"full_attention": full[:, None], "sliding_attention": (full & (distance < WINDOW))[:, None]}


def hidden_states(
    model: Gemma3ForConditionalGeneration, batch: Batch, num_layers: int | None = None
) -> torch.Tensor:
    """States after the final norm `[B, T, E]`, of the first `num_layers` text layers (default: all)."""
    text = model.model.language_model
    embedded = text.embed_tokens(batch.ids)
    if batch.pixels is not None:
        features = image_features(model, batch.pixels)
        where = (batch.ids == IMAGE_TOKEN).unsqueeze(-1)
        embedded = embedded.masked_scatter(where, features)
    full_depth = text.config.num_hidden_layers
    text.config.num_hidden_layers = num_layers or full_depth
    try:
        return text(
            inputs_embeds=embedded, attention_mask=attention_masks(batch.ids), use_cache=False
        ).last_hidden_state
    finally:
        text.config.num_hidden_layers = full_depth


def answer_logits(
    model: Gemma3ForConditionalGeneration, batch: Batch, num_layers: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits `[N, V]`, targets `[N]` and weights `[N]` of the N tokens that count."""
    hidden = hidden_states(model, batch, num_layers)
    counts = batch.weights[:, 1:] > 0
    logits = hidden[:, :-1][counts] @ model.model.language_model.embed_tokens.weight.T
    return logits, batch.ids[:, 1:][counts], batch.weights[:, 1:][counts]


def summed_loss(logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum of cross entropies, nats."""
    return (cross_entropy(logits, targets, reduction="none") * weights).sum()


@torch.no_grad()
def rows_right(
    model: Gemma3ForConditionalGeneration, batch: Batch, num_layers: int | None = None
) -> list[bool]:
    """Whether each row's counted tokens are all the most likely ones: what greedy decoding would write."""
    hidden = hidden_states(model, batch, num_layers)
    best = (hidden[:, :-1] @ model.model.language_model.embed_tokens.weight.T).argmax(-1)
    wrong = (best != batch.ids[:, 1:]) & (batch.weights[:, 1:] > 0)
    return (~wrong.any(1)).tolist()
