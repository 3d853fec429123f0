"""Named computations that replace the values of a whole (small) matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.surgery.encoding import Shape

Values: TypeAlias = "npt.NDArray[np.float32]"


class Transform(Protocol):
    """Values in, values out, with the output shape known before any weight is read."""

    @property
    def lossless(self) -> bool:
        """Whether the stored values survive exactly."""
        ...

    def shape(self, source: Shape) -> Shape:
        """Shape of the result for a source of shape `source`."""
        ...

    def apply(self, values: Values) -> Values:
        """The new values, float32."""
        ...

    def to_json(self) -> Json:
        """For the plan."""
        ...


@dataclass(frozen=True)
class Permute:
    """Reorder the dimensions, e.g. a convolution from `[O, I, H, W]` to MLX's `[O, H, W, I]`."""

    axes: tuple[int, ...]

    @property
    def lossless(self) -> bool:
        """Always: values only move."""
        return True

    def shape(self, source: Shape) -> Shape:
        """The permuted shape."""
        return tuple(source[axis] for axis in self.axes)

    def apply(self, values: Values) -> Values:
        """The permuted values, contiguous."""
        return np.ascontiguousarray(values.transpose(self.axes))

    def to_json(self) -> Json:
        """For the plan."""
        return {"permute": list(self.axes)}


@dataclass(frozen=True)
class ResampleGrid:
    """Resample a table of `from_side**2` rows, a row-major square grid, to `to_side**2` rows.

    `bilinear` and `bicubic` (a = -0.75) use half-pixel centres, clamp at the border and do not
    antialias: the definitions of ``torch.nn.functional.interpolate(align_corners=False)``.
    Computed tap by tap in float64 without reductions whose order could vary.
    """

    from_side: int
    to_side: int
    method: str

    @property
    def lossless(self) -> bool:
        """Never: every value is a new mixture."""
        return False

    def shape(self, source: Shape) -> Shape:
        """``[to_side**2, width]``."""
        return (self.to_side**2, *source[1:])

    def apply(self, values: Values) -> Values:
        """Interpolated rows, float32 `[to_side**2, width]`."""
        width = math.prod(values.shape[1:])
        grid = values.reshape(self.from_side, self.from_side, width)
        taps, weights = self._taps()
        result = np.empty((self.to_side, self.to_side, width), np.float32)
        # One output row at a time: the float64 temporaries stay in the cache.
        for row in range(self.to_side):
            mixed = np.zeros((self.from_side, width))
            for tap, weight in zip(taps, weights, strict=True):
                mixed += grid[tap[row]].astype(np.float64) * weight[row]
            across = np.zeros((self.to_side, width))
            for tap, weight in zip(taps, weights, strict=True):
                across += mixed[tap] * weight[:, None]
            result[row] = across
        return result.reshape(self.to_side**2, *values.shape[1:])

    def _taps(self) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.float64]]]:
        centre = (np.arange(self.to_side) + 0.5) * (self.from_side / self.to_side) - 0.5
        if self.method == "bilinear":
            centre = np.maximum(centre, 0.0)
        base = np.floor(centre)
        t = centre - base
        if self.method == "bilinear":
            offsets, weights = [0, 1], [1.0 - t, t]
        else:
            offsets, weights = (
                [-1, 0, 1, 2],
                [_cubic_far(t + 1), _cubic_near(t), _cubic_near(1 - t), _cubic_far(2 - t)],
            )
        last = self.from_side - 1
        taps = [np.clip(base + offset, 0, last).astype(np.int64) for offset in offsets]
        return taps, weights

    def to_json(self) -> Json:
        """For the plan."""
        return {"resample_grid": [self.from_side, self.to_side], "method": self.method}


CUBIC_A = -0.75


def _cubic_near(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1


def _cubic_far(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A
