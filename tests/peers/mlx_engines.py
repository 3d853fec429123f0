"""Stock mlx-lm and mlx-vlm, loaded as their users load them, and what they compute."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from comparing import Layout, prompt_tokens, random_pixels, to_numpy
from mlx.nn import Module
from reference_models import Checkpointed

# What both engines want at the top level besides what was released.
TOP = {"vocab_size": 301}


def load_mlx_lm(folder: Path) -> Module:
    from mlx_lm.utils import load_model

    return load_model(folder)[0]


def load_mlx_vlm(folder: Path) -> Module:
    from mlx_vlm.utils import load_model

    return load_model(folder)


def mlx_lm_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    return to_numpy(load_mlx_lm(folder)(mx.array(tokens)))


def image_features(model: Module, pixels: np.ndarray) -> mx.array:
    """What mlx-vlm's tower and projector make of pixels, before any scaling."""
    patches, _, _ = model.vision_tower(mx.array(pixels), output_hidden_states=True)
    return model.multi_modal_projector(patches)


def vision_patches(model: Module, pixels: np.ndarray) -> np.ndarray:
    return to_numpy(model.vision_tower(mx.array(pixels), output_hidden_states=True)[0])


def mlx_vlm_logits(model: Module, source: Checkpointed, layout: Layout) -> np.ndarray:
    """All logits along the way that mlx-vlm's `generate_step` takes."""
    tokens, pixels = prompt_tokens(source, layout), random_pixels(source, layout)
    ids = mx.array(tokens)
    channels_first = None if pixels is None else mx.array(pixels.transpose(0, 3, 1, 2))
    features = model.get_input_embeddings(ids, channels_first, mask=mx.ones_like(ids)).to_dict()
    cache = model.language_model.make_cache()
    features = {key: value for key, value in features.items() if value is not None}
    return to_numpy(model.language_model(ids, cache=cache, **features).logits)


def mlx_vlm_next_token(model: Module, source: Checkpointed, layout: Layout) -> np.ndarray:
    """Log-probabilities `[V]` of the first token that mlx-vlm generates."""
    from mlx_vlm.generate import generate_step

    tokens, pixels = prompt_tokens(source, layout), random_pixels(source, layout)
    ids = mx.array(tokens)
    channels_first = None if pixels is None else mx.array(pixels.transpose(0, 3, 1, 2))
    steps = generate_step(ids, model, channels_first, mx.ones_like(ids), max_tokens=1, temperature=0.0)
    _, log_probabilities = next(iter(steps))
    return to_numpy(log_probabilities).ravel()
