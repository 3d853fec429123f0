"""Scenes as pixel tensors, prepared as the image processor prepares them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from gemma_surgery.demo_model.scenes import IMAGE_SIZE, Scene, render


def pixels_of(scenes: Sequence[Scene], size: int = IMAGE_SIZE) -> torch.Tensor:
    """Rendered at 224, resized bilinearly to `size` if it differs: float32 `[B, 3, size, size]` in -1..1."""
    stack = np.empty((len(scenes), size, size, 3), np.uint8)
    for index, scene in enumerate(scenes):
        image = render(scene)
        if size != IMAGE_SIZE:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        stack[index] = np.asarray(image)
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()
