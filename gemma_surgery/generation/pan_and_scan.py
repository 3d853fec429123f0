"""Pan-and-scan: a picture that is far from square is shown whole and then in pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

# left, top, right, bottom in pixels, right and bottom excluded.
Box: TypeAlias = "tuple[int, int, int, int]"


@dataclass(frozen=True)
class PanAndScan:
    """When and how to cut.

    Attributes:
        min_crop_size: pixels; pieces with a shorter side are not made.
        max_num_crops: most pieces of one image.
        min_ratio: long side to short side from which on an image is cut.
    """

    min_crop_size: int = 256
    max_num_crops: int = 4
    min_ratio: float = 1.2

    def boxes(self, width: int, height: int) -> list[Box]:
        """Return the pieces of an image along its longer side, none if it is to be shown whole only.

        All pieces are equally long but the last, which is what is left.

        Source: the pan-and-scan of the Gemma 3 technical report, as transformers carries it out.
        """
        long, short = max(width, height), min(width, height)
        if long / short < self.min_ratio:
            return []
        # Half rounds up, so that 2.5 : 1 gives three pieces.
        count = min(math.floor(long / short + 0.5), long // self.min_crop_size)
        count = min(max(2, count), self.max_num_crops)
        step = math.ceil(long / count)
        if min(step, short) < self.min_crop_size:
            return []
        spans = [(start, min(start + step, long)) for start in range(0, long, step)][:count]
        if width >= height:
            return [(start, 0, end, height) for start, end in spans]
        return [(0, start, width, end) for start, end in spans]


def expanded(full_image: str, num_crops: int) -> str:
    """Return the text that stands for one image.

    Args:
        full_image: what stands for one block of image tokens.
        num_crops: pieces that follow the whole image; 0 without pan-and-scan.
    """
    if not num_crops:
        return full_image
    # The model was trained with these words.
    crops = " ".join([full_image] * num_crops)
    return f"Here is the original image {full_image} and here are some crops to help you see better {crops}"
