"""Drawing a scene with Pillow: plain background, anti-aliased shapes, jitter from the scene's own seed."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from gemma_surgery.demo_model.scenes import Scene

Point = tuple[float, float]
Tone = tuple[int, int, int]

SUPERSAMPLING = 2
TONES: dict[str, Tone] = {
    "red": (214, 30, 36),
    "orange": (246, 138, 20),
    "yellow": (250, 226, 40),
    "green": (36, 150, 62),
    "blue": (34, 84, 214),
    "purple": (134, 44, 168),
    "black": (18, 18, 20),
    "white": (250, 250, 250),
}
TONE_JITTER = 14
# Mid greys with a faint tint, far enough from both black and white.
BACKGROUND_RANGE = (120, 196)
BACKGROUND_TINT = 10


def draw_scene(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels."""
    rng = random.Random(scene.look)
    side = size * SUPERSAMPLING
    grey = rng.randint(*BACKGROUND_RANGE)
    image = Image.new("RGB", (side, side), _near((grey, grey, grey), BACKGROUND_TINT, rng))
    draw = ImageDraw.Draw(image)
    cell = side / 3
    for thing in scene.things:
        row, column = divmod(thing.cell, 3)
        radius = cell * rng.uniform(0.28, 0.42)
        slack = cell / 2 - radius
        centre_x = (column + 0.5) * cell + rng.uniform(-slack, slack)
        centre_y = (row + 0.5) * cell + rng.uniform(-slack, slack)
        tone = _near(TONES[thing.colour], TONE_JITTER, rng)
        if thing.shape == "circle":
            draw.ellipse(
                (centre_x - radius, centre_y - radius, centre_x + radius, centre_y + radius), fill=tone
            )
        else:
            outline = _outline(thing.shape, radius)
            draw.polygon([(centre_x + x, centre_y + y) for x, y in outline], fill=tone)
    return image.reduce(SUPERSAMPLING)


def _near(tone: Tone, jitter: int, rng: random.Random) -> Tone:
    red, green, blue = (min(255, max(0, value + rng.randint(-jitter, jitter))) for value in tone)
    return red, green, blue


def _outline(shape: str, radius: float) -> list[Point]:
    """Corners around (0, 0), y pointing down."""
    if shape == "square":
        half = 0.82 * radius
        return [(-half, -half), (half, -half), (half, half), (-half, half)]
    if shape == "triangle":
        return [(0, -radius), (0.95 * radius, 0.75 * radius), (-0.95 * radius, 0.75 * radius)]
    if shape == "star":
        corners = []
        for corner in range(10):
            reach = radius if corner % 2 == 0 else 0.42 * radius
            angle = math.pi * corner / 5
            corners.append((reach * math.sin(angle), -reach * math.cos(angle)))
        return corners
    arm = 0.3 * radius
    return [
        (-arm, -radius), (arm, -radius), (arm, -arm), (radius, -arm), (radius, arm), (arm, arm),
        (arm, radius), (-arm, radius), (-arm, arm), (-radius, arm), (-radius, -arm), (-arm, -arm),
    ]  # fmt: skip
