"""`drop_layers`: remove decoder layers and renumber the rest."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import check_layers, set_layers
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft


@dataclass(frozen=True)
class DropLayers(Step):
    """Remove decoder layers; what stays is not touched. Source: Gemma-Prune, section 3.4.

    Args:
        last: how many layers to drop from the end; default 3 when `layers` is empty.
        layers: indices of the layers to drop, in the numbering before this step.
        explicit_layer_types: allow cuts that shift the local/global pattern by writing `layer_types`;
            engines that derive the pattern from the index (mlx-lm, mlx-vlm) then run the model wrongly.
    """

    last: int | None = None
    layers: tuple[int, ...] = ()
    explicit_layer_types: bool = False

    def plan(self, draft: Draft) -> None:
        """Drop and renumber."""
        family = Gemma3(draft.config)
        total = family.num_layers
        dropped = self._dropped(total)
        kept = [layer for layer in range(total) if layer not in dropped]
        if not self.explicit_layer_types:
            check_layers(family, kept)
        names: dict[str, str] = {}
        for name in list(draft.tensors):
            layer = _layer_of(name, family)
            if layer in dropped:
                draft.drop(name)
            elif layer is not None:
                rest = name.removeprefix(family.layer_prefix(layer))
                names[name] = family.layer_prefix(kept.index(layer)) + rest
        draft.rename(names)
        shifted = [family.layer_types[layer] for layer in kept] != family.types_by_pattern(len(kept))
        set_layers(draft, kept, explicit_types=shifted)
        draft.note(f"{total} -> {len(kept)} decoder layers, dropped {', '.join(map(str, sorted(dropped)))}")

    def _dropped(self, total: int) -> set[int]:
        if self.layers and self.last is not None:
            raise SurgeryError("drop_layers", "need either `last` or `layers`, got both")
        if not self.layers:
            last = 3 if self.last is None else self.last
            if not 0 < last < total:
                raise SurgeryError("drop_layers", f"need `last` in 1..{total - 1}, got {last}")
            return set(range(total - last, total))
        outside = [layer for layer in self.layers if not 0 <= layer < total]
        if outside:
            raise SurgeryError(
                "drop_layers", f"need layers in 0..{total - 1}, got {', '.join(map(str, outside))}"
            )
        return set(self.layers)


def _layer_of(name: str, family: Gemma3) -> int | None:
    stem = f"{family.text_prefix}layers."
    if not name.startswith(stem):
        return None
    number = name[len(stem) :].split(".", 1)[0]
    return int(number) if number.isdigit() else None
