"""The solver of calibrated steps against the limit; its factor against NumPy's LAPACK."""

from __future__ import annotations

import numpy as np
import pytest
from cases import full
from shapes import BITS, GROUP_SIZE, LINEARS
from work import OURS, Work

from gemma_surgery.surgery import solver
from gemma_surgery.surgery.encoding import Quantized

NUMPY = "NumPy"
ROWS, NEURONS = LINEARS["down"]
KEPT = LINEARS["down, mobile"][1]


def hessian_of(size: int) -> np.ndarray:
    """Symmetric and definite, at once: what the values are does not change the time."""
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((size, 64), np.float32)
    return factor @ factor.T + size * np.eye(size, dtype=np.float32)


def weight_of(cols: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((ROWS, cols), np.float32)


@pytest.mark.parametrize("who", [OURS, full(NUMPY)])
def test_factor(measure, who):
    size = 4096
    hessian = hessian_of(size)
    work = Work("factor", f"[{size}, {size}]", "f32", operations=2 * size**3 // 3)

    def run() -> None:
        if who == OURS:
            solver.factor(hessian)
        else:
            np.linalg.cholesky(np.linalg.inv(hessian))

    measure(work, who, run)


def test_round_compensated(measure):
    size = 4096
    weight, upper = weight_of(size), solver.factor(hessian_of(size))
    work = Work("round_compensated", f"[{ROWS}, {size}] to 4-bit", "f32", operations=ROWS * size**2)
    measure(work, OURS, lambda: solver.round_compensated(weight, upper, Quantized(BITS, GROUP_SIZE, "BF16")))


@pytest.mark.full
def test_a_layer_of_a_pruned_model(measure):
    """The down projection of the 4B shape: a quarter of the neurons go, the others make up for them."""
    hessian, weight = hessian_of(NEURONS), weight_of(NEURONS)
    kept = np.sort(np.random.default_rng(2).permutation(NEURONS)[:KEPT]).astype(np.int32)
    lost = NEURONS - KEPT
    operations = (
        # Reconstruction: Cholesky, product with what is lost, two substitutions; then factor and rounding.
        KEPT**3 // 3 + 2 * ROWS * lost * KEPT + 2 * ROWS * KEPT**2 + 2 * KEPT**3 // 3 + ROWS * KEPT**2
    )
    work = Work("solver", f"down [{ROWS}, {NEURONS}] to {KEPT} columns, 4-bit", "f32", operations=operations)

    def run() -> None:
        solved = solver.reconstruct(weight, hessian, kept)
        upper = solver.factor(hessian[np.ix_(kept, kept)])
        solver.round_compensated(solved, upper, Quantized(BITS, GROUP_SIZE, "BF16"))

    measure(work, OURS, run)
