"""`pad_vision_mlp`: make the vision MLP width divisible by the group size, and quantize fc2."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import vision_config
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Dense, Quantized


@dataclass(frozen=True)
class PadVisionMlp(Step):
    """Pad SigLIP's MLP width with zero neurons to a multiple of the group size.

    fc1 gains zero rows (its packed rows stay untouched), fc2 gains zero columns. In a quantized
    checkpoint fc2, which no group size divided before, is then quantized like fc1. A padded neuron
    computes gelu(0) = 0, so the layer is unchanged up to fc2's new rounding. Source: Gemma-Prune,
    section 3.3.

    Args:
        multiple: pad the width to a multiple of this; default: fc1's group size, or 64.
        bits: bits of fc2, default: those of fc1; ignored in a dense checkpoint.
    """

    multiple: int | None = None
    bits: int | None = None

    def plan(self, draft: Draft) -> None:
        """Pad every vision layer."""
        family = Gemma3(draft.config)
        if not family.has_vision(draft.tensors):
            draft.note("no vision tower here: nothing to do")
            return
        width = family.vision("intermediate_size")
        first = draft.tensor(f"{family.vision_layer_prefix(0)}mlp.fc1.weight").encoding
        group_size = first.group_size if isinstance(first, Quantized) else 64
        multiple = self.multiple or group_size
        if multiple % group_size:
            raise SurgeryError(
                "pad_vision_mlp",
                f"need a multiple of the group size {group_size}, got `multiple = {multiple}`",
            )
        padded = -(-width // multiple) * multiple
        for layer in range(family.vision("num_hidden_layers")):
            prefix = f"{family.vision_layer_prefix(layer)}mlp."
            draft.pad_rows(f"{prefix}fc1.weight", padded)
            draft.pad_rows(f"{prefix}fc1.bias", padded)
            fc1, fc2 = draft.tensor(f"{prefix}fc1.weight"), draft.tensor(f"{prefix}fc2.weight")
            encoding = fc2.encoding
            if isinstance(fc1.encoding, Quantized) and isinstance(fc2.encoding, Dense):
                encoding = Quantized(
                    self.bits or fc1.encoding.bits,
                    fc1.encoding.group_size,
                    fc1.encoding.scale_dtype,
                    fc1.encoding.mode,
                )
            draft.pad_columns(fc2.name, padded, encoding)
        vision_config(draft)["intermediate_size"] = padded
        if padded != width:
            draft.note(f"vision MLP width {width} -> {padded}")
