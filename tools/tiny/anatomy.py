"""The demo model's sizes, its published config and its reference implementation."""

from __future__ import annotations

import copy

import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

TOKENIZER_SIZE = 2048
SPARE_ROWS = 64
IMAGE_SIZE = 224
SMALL_IMAGE_SIZE = 168
PATCH_SIZE = 14
TOKENS_PER_IMAGE = 16
SMALL_TOKENS = 9
START_OF_TURN, END_OF_TURN = 105, 106
BEGIN_OF_IMAGE, END_OF_IMAGE, IMAGE_TOKEN = TOKENIZER_SIZE - 2, TOKENIZER_SIZE - 1, TOKENIZER_SIZE

# As the released checkpoints spell it: sparse, `rope_scaling` and not `rope_parameters`.
CONFIG: dict = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": BEGIN_OF_IMAGE,
    "eoi_token_index": END_OF_IMAGE,
    "eos_token_id": [1, END_OF_TURN],
    "image_token_index": IMAGE_TOKEN,
    "initializer_range": 0.02,
    "mm_tokens_per_image": TOKENS_PER_IMAGE,
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 32,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 64,
        "sliding_window_pattern": 6,
        # The real table, too, has spare rows behind the last token.
        "vocab_size": TOKENIZER_SIZE + SPARE_ROWS,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 64,
        "image_size": IMAGE_SIZE,
        # 16 x a prime, as in SigLIP: no affine group divides it.
        "intermediate_size": 16 * 17,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    },
}
# Image tokens and words enter the residual stream with root mean squares near 1.
PROJECTION_STD = 0.06
EMBEDDING_STD = CONFIG["text_config"]["hidden_size"] ** -0.5
# Gemma normalizes what every block adds: small at first, so that the stream is not drowned in noise.
BLOCK_SCALE = 0.25


def new_model() -> Gemma3ForConditionalGeneration:
    """The untrained model in float32; random numbers come from torch's global generator."""
    settings = copy.deepcopy(CONFIG)
    text, vision = settings.pop("text_config"), settings.pop("vision_config")
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        image_token_id=IMAGE_TOKEN,
        boi_token_id=BEGIN_OF_IMAGE,
        eoi_token_id=END_OF_IMAGE,
    )
    model = Gemma3ForConditionalGeneration(config).float()
    model.set_attn_implementation("sdpa")
    projector = model.model.multi_modal_projector
    torch.nn.init.normal_(projector.mm_input_projection_weight, std=PROJECTION_STD)
    text = model.model.language_model
    generator = torch.Generator().manual_seed(torch.initial_seed())
    torch.nn.init.normal_(text.embed_tokens.weight, std=EMBEDDING_STD, generator=generator)
    for layer in text.layers:
        torch.nn.init.constant_(layer.post_attention_layernorm.weight, BLOCK_SCALE - 1)
        torch.nn.init.constant_(layer.post_feedforward_layernorm.weight, BLOCK_SCALE - 1)
    return model


def image_features(model: Gemma3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Image tokens `[B, N, E]` of pixels `[B, 3, S, S]` in -1..1, for any S that is a multiple of 56.

    At the configured size this is the reference's own path. At another size the position table is
    resampled bilinearly and the pooling kernel kept: what `reduce_resolution` makes of the model.
    """
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    side = pixels.shape[-1] // PATCH_SIZE
    full = IMAGE_SIZE // PATCH_SIZE
    positions = tower.embeddings.position_embedding.weight
    if side != full:
        grid = positions.view(1, full, full, -1).permute(0, 3, 1, 2)
        grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
        positions = grid.flatten(2).squeeze(0).T
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    hidden = tower.encoder(inputs_embeds=patches + positions).last_hidden_state
    hidden = tower.post_layernorm(hidden)
    squares = hidden.transpose(1, 2).unflatten(2, (side, side))
    pooled = projector.avg_pool(squares).flatten(2).transpose(1, 2)
    return projector.mm_soft_emb_norm(pooled) @ projector.mm_input_projection_weight
