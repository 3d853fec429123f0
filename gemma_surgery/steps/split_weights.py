"""`split_weights`: language and vision in files of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft

FILE_NAMES = {
    "published": ("language_model.safetensors", "vision_model.safetensors"),
    "mlx": ("model-language.safetensors", "model-vision.safetensors"),
}


@dataclass(frozen=True)
class SplitWeights(Step):
    """Put text and vision weights into separate files, so that text-only use never reads the latter.

    Source: Gemma-Prune, section 3.7.

    Args:
        names: `published` for `language_model` / `vision_model`, or `mlx` for `model-language` /
            `model-vision`, which mlx-lm's loader (it reads `model*.safetensors`) also finds.
    """

    changes_answers: ClassVar[bool] = False

    names: Literal["published", "mlx"] = "published"

    def plan(self, draft: Draft) -> None:
        """Choose the file of every tensor."""
        family = Gemma3(draft.config)
        if not family.has_vision(draft.tensors):
            draft.note("no vision tower here: nothing to do")
            return
        language, vision = FILE_NAMES[self.names]
        draft.place = lambda name: vision if family.is_vision(name) else language
