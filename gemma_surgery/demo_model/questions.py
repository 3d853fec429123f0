"""Questions about scenes, with their one right answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from gemma_surgery.demo_model.scenes import COLOURS, POSITIONS, SHAPES, Scene, Thing, caption

NUMBER_WORDS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine", "Ten")
DESCRIBE = (
    "Describe the image.",
    "What do you see?",
    "What is in the image?",
    "Describe this picture.",
    "Tell me what the picture shows.",
    "What does the image show?",
)


@dataclass(frozen=True)
class Turn:
    """One exchange: what the user writes and what the model should answer."""

    kind: str
    prompt: str
    answer: str


def question(kind: str, scene: Scene, rng: random.Random) -> Turn | None:
    """A question of one of `QUESTION_KINDS`, or None if the scene has no unambiguous one."""
    return _MAKERS[kind](scene, rng)


def questions(scene: Scene, rng: random.Random, count: int) -> list[Turn]:
    """`count` different questions of mixed kinds about `scene`."""
    turns: dict[str, Turn] = {}
    for _ in range(20 * count):
        turn = question(rng.choice(QUESTION_KINDS), scene, rng)
        if turn is not None:
            turns.setdefault(turn.prompt, turn)
        if len(turns) == count:
            break
    return list(turns.values())


def answer_is_right(text: str, expected: str) -> bool:
    """Exact match, surrounding white space aside."""
    return text.strip() == expected


def _describe(scene: Scene, rng: random.Random) -> Turn:
    return Turn("describe", rng.choice(DESCRIBE), caption(scene))


def _count(scene: Scene, rng: random.Random) -> Turn:
    prompts = ("How many shapes are there?", "How many shapes do you see?", "Count the shapes.")
    return Turn("count", rng.choice(prompts), f"{NUMBER_WORDS[len(scene.things)]}.")


def _at_position(scene: Scene, rng: random.Random) -> Turn:
    # Half of the questions ask for a cell that holds something.
    filled = [thing.cell for thing in scene.things]
    cell = rng.choice(filled) if rng.random() < 0.6 else rng.randrange(len(POSITIONS))
    found = next((thing for thing in scene.things if thing.cell == cell), None)
    where = POSITIONS[cell]
    prompt = rng.choice((f"What is {where}?", f"What do you see {where}?", f"Which shape is {where}?"))
    return Turn("position", prompt, _sentence(found.phrase) if found else "Nothing.")


def _colour(scene: Scene, rng: random.Random) -> Turn | None:
    thing = _unique(scene, rng, lambda thing: thing.shape)
    if thing is None:
        return None
    prompt = rng.choice((f"What color is the {thing.shape}?", f"What is the color of the {thing.shape}?"))
    return Turn("color", prompt, _sentence(thing.colour))


def _shape(scene: Scene, rng: random.Random) -> Turn | None:
    thing = _unique(scene, rng, lambda thing: thing.colour)
    if thing is None:
        return None
    prompt = rng.choice((f"What shape is {thing.colour}?", f"Which shape is {thing.colour}?"))
    return Turn("shape", prompt, f"The {thing.shape}.")


def _where(scene: Scene, rng: random.Random) -> Turn | None:
    thing = _unique(scene, rng, lambda thing: (thing.colour, thing.shape))
    if thing is None:
        return None
    name = f"{thing.colour} {thing.shape}"
    if sum(other.shape == thing.shape for other in scene.things) == 1 and rng.random() < 0.5:
        name = thing.shape
    prompt = rng.choice((f"Where is the {name}?", f"Where do you see the {name}?"))
    return Turn("where", prompt, _sentence(POSITIONS[thing.cell]))


def _exists(scene: Scene, rng: random.Random) -> Turn:
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if rng.random() < 0.5:
        thing = rng.choice(scene.things)
        colour, shape = thing.colour, thing.shape
    phrase = Thing(0, colour, shape).phrase
    found = any((thing.colour, thing.shape) == (colour, shape) for thing in scene.things)
    prompt = rng.choice((f"Is there {phrase}?", f"Do you see {phrase}?"))
    return Turn("exists", prompt, "Yes." if found else "No.")


def _unique(scene: Scene, rng: random.Random, key: Callable[[Thing], object]) -> Thing | None:
    """A thing that `key` tells apart from all others."""
    keys = [key(thing) for thing in scene.things]
    unique = [thing for thing in scene.things if keys.count(key(thing)) == 1]
    return rng.choice(unique) if unique else None


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


_MAKERS: dict[str, Callable[[Scene, random.Random], Turn | None]] = {
    "describe": _describe,
    "count": _count,
    "position": _at_position,
    "color": _colour,
    "shape": _shape,
    "where": _where,
    "exists": _exists,
}
QUESTION_KINDS = tuple(_MAKERS)


def two_image_turn(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """A question about one of two images shown in one prompt, named `first` and `second`."""
    ordinal, scene = rng.choice((("first", first), ("second", second)))
    if rng.random() < 0.3:
        other = second if scene is first else first
        mine = [thing for thing in scene.things if all(thing.fact[:2] != it.fact[:2] for it in other.things)]
        if mine:
            return Turn(
                "which_image", f"Which image shows {rng.choice(mine).phrase}?", f"The {ordinal} image."
            )
    prompts = (f"Describe the {ordinal} image.", f"What is in the {ordinal} image?")
    return Turn("describe_one", rng.choice(prompts), caption(scene))
