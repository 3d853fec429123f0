"""The grid resampling against direct definitions."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_surgery.surgery.transform import Permute, ResampleGrid


def direct(grid: np.ndarray, to: int, method: str) -> np.ndarray:
    """Every output pixel from the textbook sum over all source pixels, in float64."""
    side, width = grid.shape[0], grid.shape[2]
    out = np.zeros((to, to, width))

    def kernel(x: float) -> float:
        x = abs(x)
        if method == "bilinear":
            return max(0.0, 1 - x)
        a = -0.75
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    for row in range(to):
        for column in range(to):
            centres = [(index + 0.5) * side / to - 0.5 for index in (row, column)]
            for y in range(-2, side + 2):
                for x in range(-2, side + 2):
                    weight = kernel(centres[0] - y) * kernel(centres[1] - x)
                    if weight:
                        clamped = grid[min(max(y, 0), side - 1), min(max(x, 0), side - 1)]
                        out[row, column] += weight * clamped
    return out


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("side", "to"), [(8, 6), (8, 4), (6, 8), (5, 5), (4, 1)])
def test_resampling_equals_the_definition(method: str, side: int, to: int) -> None:
    values = np.random.default_rng(side * 10 + to).standard_normal((side * side, 3)).astype(np.float32)
    got = ResampleGrid(side, to, method).apply(values)
    expected = direct(values.reshape(side, side, 3).astype(np.float64), to, method)
    assert got.shape == (to * to, 3)
    assert np.allclose(got.reshape(to, to, 3), expected, atol=1e-6)


def test_resampling_keeps_a_constant_and_a_ramp_inside() -> None:
    ramp = np.repeat(np.arange(64, dtype=np.float32), 64)[:, None]
    got = ResampleGrid(64, 48, "bilinear").apply(ramp).reshape(48, 48)
    centres = (np.arange(48) + 0.5) * 64 / 48 - 0.5
    assert np.allclose(got[:, 0], centres, atol=1e-5)
    assert np.ptp(got, axis=1).max() == 0


def test_permute_moves_a_convolution_without_change() -> None:
    values = np.arange(2 * 3 * 4 * 4, dtype=np.float32).reshape(2, 3, 4, 4)
    permute = Permute((0, 2, 3, 1))
    assert permute.shape((2, 3, 4, 4)) == (2, 4, 4, 3)
    assert permute.apply(values)[1, 2, 3, 0] == values[1, 0, 2, 3]
