"""`drop_layers`: remove decoder layers and renumber the rest."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.errors import MissingProfileError, SurgeryError
from gemma_surgery.families.edit import cheapest_layers, check_layers, set_layers
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step, open_profile, source_matrix
from gemma_surgery.surgery.draft import Draft


@dataclass(frozen=True)
class DropLayers(Step):
    """Remove decoder layers; what stays is not touched. Source: Gemma-Prune, section 3.4.

    Args:
        last: how many layers to drop from the end; default 3 when nothing else is said.
        layers: indices of the layers to drop, in the numbering before this step.
        auto: how many layers to drop: those with the least sum of block influence (ShortGPT) that a
            profile measured, among the choices that keep the local/global pattern.
        explicit_layer_types: allow cuts that shift the local/global pattern by writing `layer_types`;
            engines that derive the pattern from the index (mlx-lm, mlx-vlm) then run the model wrongly.
        profile: a profile of this checkpoint (`docs/format.md`), default: the recipe's.
    """

    last: int | None = None
    layers: tuple[int, ...] = ()
    auto: int | None = None
    explicit_layer_types: bool = False
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Drop and renumber."""
        family = Gemma3(draft.config)
        total = family.num_layers
        dropped = self._dropped(total) if self.auto is None else self._least_influential(draft, family)
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

    def _least_influential(self, draft: Draft, family: Gemma3) -> set[int]:
        total, count = family.num_layers, self.auto
        assert count is not None
        if self.layers or self.last is not None:
            raise SurgeryError(
                "drop_layers",
                f"need either `auto` or `{'layers' if self.layers else 'last'}`, got both",
            )
        if self.profile is None:
            raise MissingProfileError(
                "drop_layers",
                f"need `profile` for `auto = {count}`, got none",
                "make one with `gemma-surgery profile`, and give it with `--profile`",
            )
        if not 0 < count < total:
            raise SurgeryError("drop_layers", f"need `auto` in 1..{total - 1}, got {count}")
        profile = open_profile(draft, self.profile)
        influence = []
        for layer in range(total):
            gate = source_matrix(draft, "drop_layers", family.mlp(layer)[0])
            influence.append(profile.block_influence(gate.name.removesuffix("mlp.gate_proj.weight")))
        kept = cheapest_layers(family, total - count, influence, self.explicit_layer_types)
        dropped = sorted(set(range(total)) - set(kept))
        named = ", ".join(f"{layer} ({influence[layer]:.4f})" for layer in dropped)
        least = min(influence[layer] for layer in kept)
        draft.note(f"block influence of the dropped layers: {named}; of the others: {least:.4f} or more")
        return set(dropped)


def _layer_of(name: str, family: Gemma3) -> int | None:
    stem = f"{family.text_prefix}layers."
    if not name.startswith(stem):
        return None
    number = name[len(stem) :].split(".", 1)[0]
    return int(number) if number.isdigit() else None
