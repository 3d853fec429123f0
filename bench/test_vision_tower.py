"""One image through the SigLIP tower and the projector."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import evaluated
from models import MODELS, subject
from work import OURS, Work


@pytest.mark.parametrize("name", MODELS)
def test_vision_tower(measure, request, name):
    model = subject(name, request.config).model
    vision = model.config.vision
    pixels = mx.random.uniform(-1, 1, (1, vision.image_size, vision.image_size, vision.num_channels))
    mx.eval(pixels, model.embed_images(pixels))
    work = Work("vision tower", f"{name}, {vision.image_size} px", operations=operations(model))
    measure(work, OURS, evaluated(lambda: model.embed_images(pixels)))


def operations(model) -> int:
    """Products and sums of matrices and attention in the layers, which are nearly all of it."""
    vision = model.config.vision
    tokens, width = vision.grid**2, vision.hidden_size
    mlp = model.checkpoint.config["vision_config"]["intermediate_size"]
    linears = tokens * width * (4 * width + 2 * mlp)
    return 2 * vision.num_layers * (linears + 2 * tokens * tokens * width)
