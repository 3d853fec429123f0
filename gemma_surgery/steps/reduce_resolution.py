"""`reduce_resolution`: smaller images for the vision tower."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import nearest_image_size, set_image_size
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.transform import ResampleGrid

# Gemma-Prune, section 5.4.1: 672 of 896 pixels work, 448 do not; nothing between them is published.
LEAST_SHARE = 0.75


@dataclass(frozen=True)
class ReduceResolution(Step):
    """Resample the vision position table to a smaller patch grid and state the size everywhere.

    The table is decoded, resampled and stored in its former encoding. Source: Gemma-Prune, section 3.5.

    Args:
        image_size: side of the square input image, pixels.
        tokens_per_image: image tokens after pooling; default: keep the pooling kernel.
        resample: `bilinear` as published, or `bicubic` as SigLIP's own interpolation.
    """

    image_size: int = 672
    tokens_per_image: int | None = None
    resample: Literal["bilinear", "bicubic"] = "bilinear"

    def plan(self, draft: Draft) -> None:
        """Resample and restate."""
        family = Gemma3(draft.config)
        if not family.has_vision(draft.tensors):
            draft.note("no vision tower here: nothing to do")
            return
        patch = family.vision("patch_size")
        size = family.vision("image_size")
        grid, side = size // patch, math.isqrt(family.tokens_per_image)
        new_grid, tokens = self._fit(patch, kernel=grid // side)
        if new_grid == grid:
            draft.note(f"the images are {self.image_size} pixels already")
        else:
            draft.transform(family.position_embedding, ResampleGrid(grid, new_grid, self.resample))
        if self.image_size < LEAST_SHARE * size:
            draft.warn(
                f"the resolution is too small: {self.image_size} of {size} pixels leave {tokens} of "
                f"{side * side} image tokens; at half the size the published model fell into loops, at three "
                "quarters it described images well"
            )
        set_image_size(draft, self.image_size, tokens)
        draft.note(f"{grid * grid} -> {new_grid * new_grid} patches, {side * side} -> {tokens} image tokens")

    def _fit(self, patch: int, kernel: int) -> tuple[int, int]:
        """Patch grid side and image tokens, or an error that names the nearest valid size."""
        if self.tokens_per_image is None:
            unit, rule = patch * kernel, f"pooling {kernel} x {kernel} patches of {patch} pixels"
        else:
            side = math.isqrt(self.tokens_per_image)
            if side < 1 or side * side != self.tokens_per_image:
                raise SurgeryError(
                    "reduce_resolution",
                    f"need a square number of image tokens, got `tokens_per_image = {self.tokens_per_image}`",
                    f"nearest: {max(1, round(math.sqrt(max(1, self.tokens_per_image)))) ** 2}",
                )
            unit, rule = patch * side, f"pooling patches of {patch} pixels to {side} x {side} tokens"
        if self.image_size <= 0 or self.image_size % unit:
            nearest = nearest_image_size(self.image_size, unit)
            raise SurgeryError(
                "reduce_resolution",
                f"need an image size divisible by {unit} for {rule}, got `image_size = {self.image_size}`",
                f"nearest valid size: {nearest}",
            )
        new_grid = self.image_size // patch
        return new_grid, self.tokens_per_image or (new_grid // kernel) ** 2
