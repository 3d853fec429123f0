"""Scenes of coloured shapes: random, drawn, described, and scored fact by fact."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gemma_surgery.demo_model.split import Split, is_held_out

if TYPE_CHECKING:
    from PIL.Image import Image

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross")
# In reading order, so that the index is `3 * row + column`.
POSITIONS = (
    "at the top left",
    "at the top",
    "at the top right",
    "on the left",
    "in the center",
    "on the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
MAX_THINGS = 3
IMAGE_SIZE = 224

Fact = tuple[str, str, str]


@dataclass(frozen=True, order=True)
class Thing:
    """One shape of a scene; `cell` is its index in `POSITIONS`."""

    cell: int
    colour: str
    shape: str

    @property
    def fact(self) -> Fact:
        """What a description has to say: colour, shape, position."""
        return (self.colour, self.shape, POSITIONS[self.cell])

    @property
    def phrase(self) -> str:
        """With its article: `an orange star`."""
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Things in reading order, each in a cell of its own.

    Attributes:
        things: what there is to see.
        look: seed of what no question asks for: exact tones, sizes, offsets and the background.
    """

    things: tuple[Thing, ...]
    look: int = 0

    @property
    def key(self) -> str:
        """The content spelt out; two scenes with one key differ in look only."""
        return "; ".join(f"{thing.colour} {thing.shape} {POSITIONS[thing.cell]}" for thing in self.things)

    @property
    def facts(self) -> tuple[Fact, ...]:
        """One per thing."""
        return tuple(thing.fact for thing in self.things)


def random_scene(rng: random.Random, num_things: int | None = None, split: Split = "train") -> Scene:
    """A scene of `num_things` (default: 1 to 3) things whose content belongs to `split`."""
    while True:
        count = num_things or rng.randint(1, MAX_THINGS)
        cells = sorted(rng.sample(range(len(POSITIONS)), count))
        things = tuple(Thing(cell, rng.choice(COLOURS), rng.choice(SHAPES)) for cell in cells)
        scene = Scene(things, rng.getrandbits(32))
        if is_held_out(scene.key) == (split == "held_out"):
            return scene


def render(scene: Scene, size: int = IMAGE_SIZE) -> Image:
    """The scene as an RGB image of `size` x `size` pixels; equal scenes give equal images."""
    from gemma_surgery.demo_model.drawing import draw_scene

    return draw_scene(scene, size)


def caption(scene: Scene) -> str:
    """The canonical description, things in reading order."""
    parts = [f"{thing.phrase} {POSITIONS[thing.cell]}" for thing in scene.things]
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"There is {listed}."


_CLAIM = re.compile(
    rf"\b(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})\b"
    rf"(?: ({'|'.join(sorted(POSITIONS, key=len, reverse=True))})\b)?"
)


def claims(text: str) -> list[tuple[str | None, str, str | None]]:
    """Every shape that `text` names, with the colour before it and the position after it, if given."""
    return [(match[1], match[2], match[3]) for match in _CLAIM.finditer(text.lower())]


def score_description(text: str, scene: Scene) -> tuple[int, int]:
    """Facts of `scene` that `text` states, and the number of facts they are measured against.

    A fact is right when its colour, shape and position are named together. Every shape that is named but
    not there (a wrong colour, shape or position, a fact told twice, a shape without colour or position)
    adds one to the total, so that guessing costs: right / total is intersection over union.

    Returns:
        `(facts_right, facts_total)`, `facts_total` at least the number of things.
    """
    missing: list[tuple[str | None, str, str | None]] = list(scene.facts)
    right = extra = 0
    for claim in claims(text):
        if claim in missing:
            missing.remove(claim)
            right += 1
        else:
            extra += 1
    return right, len(scene.facts) + extra
