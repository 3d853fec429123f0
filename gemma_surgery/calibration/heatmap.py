"""The picture of Gemma-Prune's figure 2: how active the neurons of each layer are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float64]

SHADES = " ░▒▓█"
TEXT_COLUMNS = 30
PICTURE_COLUMNS = 960
ROW_PIXELS = 14
LABEL_PIXELS = 40
# Activations are drawn between these, on a logarithmic scale.
LOWEST, HIGHEST = 0.01, 10.0
# From dark to bright, equally spaced.
COLOURS = ((10, 10, 40), (60, 15, 110), (150, 40, 120), (225, 80, 80), (250, 160, 60), (252, 253, 190))


def text_rows(activations: Sequence[Floats]) -> list[str]:
    """One line per layer: its neurons from most to least active, dark where they are silent."""
    rows = []
    for values in activations:
        level = _levels(_binned(values, TEXT_COLUMNS)) * (len(SHADES) - 1)
        rows.append("".join(SHADES[round(shade)] for shade in level))
    return rows


def picture(activations: Sequence[Floats], threshold: float) -> Image.Image:
    """Layers from top to bottom, their neurons sorted from most to least active.

    Args:
        activations: mean absolute activation per neuron, `[F]` per layer.
        threshold: a white tick marks where a layer falls below it.
    """
    height = ROW_PIXELS * len(activations) + 30
    image = Image.new("RGB", (LABEL_PIXELS + PICTURE_COLUMNS + 10, height), "white")
    draw = ImageDraw.Draw(image)
    for layer, values in enumerate(activations):
        colours = _coloured(_levels(_binned(values, PICTURE_COLUMNS)))
        strip = Image.fromarray(np.repeat(colours[None], ROW_PIXELS - 1, axis=0))
        top = layer * ROW_PIXELS
        image.paste(strip, (LABEL_PIXELS, top))
        draw.text((4, top), f"{layer}", fill="black")
        alive = np.count_nonzero(values >= threshold) / len(values)
        x = LABEL_PIXELS + round(alive * (PICTURE_COLUMNS - 1))
        draw.line([(x, top), (x, top + ROW_PIXELS - 2)], fill="white", width=2)
    _draw_scale(image, draw, height)
    return image


def _draw_scale(image: Image.Image, draw: ImageDraw.ImageDraw, height: int) -> None:
    width = 240
    ramp = _coloured(np.linspace(0, 1, width))
    image.paste(Image.fromarray(np.repeat(ramp[None], 10, axis=0)), (LABEL_PIXELS, height - 20))
    text = f"mean |gelu(gate)| from {LOWEST:g} to {HIGHEST:g} (logarithmic), neurons sorted, tick: threshold"
    draw.text((LABEL_PIXELS + width + 10, height - 21), text, fill="black")


def _binned(values: Floats, count: int) -> Floats:
    """Sorted from high to low and averaged in `count` bins (fewer neurons: repeated)."""
    order = np.sort(values)[::-1]
    edges = np.linspace(0, len(order), count + 1)
    starts = np.minimum(edges[:-1].astype(int), len(order) - 1)
    stops = np.maximum(edges[1:].astype(int), starts + 1)
    sums = np.concatenate([[0.0], np.cumsum(order)])
    binned: Floats = (sums[stops] - sums[starts]) / (stops - starts)
    return binned


def _levels(values: Floats) -> Floats:
    low, high = np.log(LOWEST), np.log(HIGHEST)
    levels: Floats = np.clip((np.log(np.maximum(values, LOWEST)) - low) / (high - low), 0, 1)
    return levels


def _coloured(levels: Floats) -> npt.NDArray[np.uint8]:
    anchors = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(levels, anchors, [colour[i] for colour in COLOURS]) for i in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
