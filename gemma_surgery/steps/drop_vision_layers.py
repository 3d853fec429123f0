"""`drop_vision_layers`: remove layers of the vision tower, a published failure kept for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import vision_config
from gemma_surgery.families.gemma3 import VISION, Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft


@dataclass(frozen=True)
class DropVisionLayers(Step):
    """Remove vision layers and renumber the rest; what stays is not touched.

    Gemma-Prune, section 5.4.2: without the layers 12 to 15, which are 35 MB, a model took a pizza for skin.
    This step is there to measure that, and for towers that are trained again afterwards.

    Args:
        layers: indices of the layers to drop.
    """

    layers: tuple[int, ...]

    def plan(self, draft: Draft) -> None:
        """Drop and renumber."""
        family = Gemma3(draft.config)
        if not family.has_vision(draft.tensors):
            draft.note("no vision tower here: nothing to do")
            return
        total = family.vision("num_hidden_layers")
        outside = [layer for layer in self.layers if not 0 <= layer < total]
        if outside or not self.layers or len(set(self.layers)) >= total:
            raise SurgeryError(
                "drop_vision_layers",
                f"need some but not all of the layers 0..{total - 1}, got {list(self.layers)}",
            )
        kept = [layer for layer in range(total) if layer not in self.layers]
        stem = f"{VISION}encoder.layers."
        names: dict[str, str] = {}
        for name in list(draft.tensors):
            if not name.startswith(stem):
                continue
            number, rest = name[len(stem) :].split(".", 1)
            if int(number) in self.layers:
                draft.drop(name)
            else:
                names[name] = f"{family.vision_layer_prefix(kept.index(int(number)))}{rest}"
        draft.rename(names)
        vision_config(draft)["num_hidden_layers"] = len(kept)
        draft.note(f"{total} -> {len(kept)} vision layers")
        draft.warn(
            f"{total - len(kept)} of {total} vision layers are removed: the published attempt saved 35 MB "
            "and no longer understood any image; leave this step out unless the tower is trained again"
        )
