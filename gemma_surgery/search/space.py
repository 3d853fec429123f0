"""What a search may change: how many decoder layers stay, and how wide the MLP of each is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.recipes.recipe import Recipe, make_plan
from gemma_surgery.steps import Step
from gemma_surgery.steps.drop_layers import DropLayers
from gemma_surgery.steps.prune_neurons import PruneNeurons

# A layer gives up neurons in eighths of its width, at most half of them.
PARTS = 8
MOST_PARTS = 4
# Decoder layers that may go, as a share.
MOST_DROPPED = 0.2


@dataclass(frozen=True)
class Point:
    """One recipe of the space.

    Attributes:
        dropped: decoder layers that go.
        parts: eighths of its width that each remaining layer gives up.
    """

    dropped: int
    parts: tuple[int, ...]

    @property
    def label(self) -> str:
        """For people: `3 layers fewer, 12 % of the neurons`."""
        share = sum(self.parts) / (PARTS * len(self.parts))
        layers = f"{self.dropped} layers fewer" if self.dropped else "all layers"
        return f"{layers}, {share:.0%} of the neurons fewer"


class Space:
    """Recipes that differ in layers and widths.

    Args:
        source: the original.
        base: a recipe; what it says of layers and neurons is left to the search.
        profile: of the original: which layers go, and which neurons; None decides by weights.

    Attributes:
        num_layers: decoder layers of the original.
        widths: MLP width per decoder layer.
    """

    def __init__(self, source: Checkpoint, base: Recipe, profile: str | None = None) -> None:
        family = Gemma3(source.config)
        self.source, self.num_layers, self.widths = source, family.num_layers, family.mlp_widths
        self._has_profile = profile is not None
        steps = [(name, step) for name, step in base.steps if name not in ("drop_layers", "prune_neurons")]
        self._base = replace(base, name="search", steps=tuple(steps), profile=profile)
        self._kept: dict[int, tuple[int, ...]] = {}
        self.alignment = PruneNeurons().alignment

    def most_dropped(self) -> int:
        """Layers that may go at most."""
        return int(self.num_layers * MOST_DROPPED)

    def recipe(self, point: Point) -> Recipe:
        """The recipe of a point."""
        middle: list[tuple[str, Step]] = []
        if point.dropped:
            step = DropLayers(auto=point.dropped) if self._has_profile else DropLayers(last=point.dropped)
            middle.append(("drop_layers", step))
        if any(point.parts):
            widths = [
                self.width(layer, parts)
                for layer, parts in zip(self.kept_layers(point.dropped), point.parts, strict=True)
            ]
            middle.append(("prune_neurons", PruneNeurons(protect_first=0, widths=tuple(widths))))
        first = [entry for entry in self._base.steps if entry[0] != "split_weights"]
        last = [entry for entry in self._base.steps if entry[0] == "split_weights"]
        has_use = any(hasattr(step, "profile") for _, step in (*first, *middle, *last))
        return replace(
            self._base, steps=(*first, *middle, *last), profile=self._base.profile if has_use else None
        )

    def width(self, layer: int, parts: int) -> int:
        """Width of a layer that gives up `parts` eighths, a multiple of the alignment."""
        full = self.widths[layer]
        return full - full * parts // PARTS // self.alignment * self.alignment

    def kept_layers(self, dropped: int) -> tuple[int, ...]:
        """Numbers of the layers that stay when `dropped` go."""
        if dropped == 0:
            return tuple(range(self.num_layers))
        if dropped not in self._kept:
            plan = make_plan(self.source, self.recipe(Point(dropped, (0,) * (self.num_layers - dropped))))
            family = Gemma3(self.source.config)
            numbers = {
                int(name.removeprefix(f"{family.text_prefix}layers.").split(".", 1)[0])
                for planned in plan.tensors
                if (name := getattr(planned.tensor.origin, "name", "")).startswith(
                    f"{family.text_prefix}layers."
                )
            }
            self._kept[dropped] = tuple(sorted(numbers))
        return self._kept[dropped]

    def size_bytes(self, point: Point) -> int:
        """Exact tensor bytes of a point's checkpoint; no weight is read."""
        return make_plan(self.source, self.recipe(point)).output_bytes

    def droppable(self) -> list[int]:
        """Numbers of layers that the family lets go."""
        found = [0]
        for dropped in range(1, self.most_dropped() + 1):
            try:
                self.kept_layers(dropped)
            except SurgeryError:
                continue
            found.append(dropped)
        return found


def untouched(num_layers: int, dropped: int = 0) -> Point:
    """All remaining layers at full width."""
    return Point(dropped, (0,) * (num_layers - dropped))


def alone(num_layers: int, layer: int, parts: int) -> Point:
    """One layer narrower, everything else as it was."""
    return Point(0, tuple(parts if index == layer else 0 for index in range(num_layers)))


def toml_of(recipe: Recipe, description: str) -> str:
    """A recipe as a file that `--recipe` reads."""
    document = recipe.to_json()
    lines = [f"description = {_toml(description)}"]
    if recipe.profile is not None:
        lines.append(f"profile = {_toml(recipe.profile)}")
    steps = document["steps"]
    assert isinstance(steps, list)
    for step in steps:
        assert isinstance(step, dict)
        lines += ["", "[[steps]]", *(f"{key} = {_toml(value)}" for key, value in step.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, Sequence):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return repr(value)
