"""Least squares on calibration Hessians: weights for fewer columns, and rounding that repairs its errors.

A Hessian is the mean of ``x x^T`` over calibration tokens, where x are the inputs of a linear layer. Its
diagonal is raised by a share of its mean, the damping. Where rounding left the matrix indefinite all the
same, the share grows by 0.01 up to 1, then tenfold up to 1000. Inputs that were always zero (dead columns)
count with the mean. `shrink` makes a Hessian of few tokens safe beforehand.

Everything is float32 in a fixed order: the same bytes for any number of threads and on every instruction
set. Arrays that are not float32 or not contiguous are copied; nothing else is of the size of a Hessian than
what is named below.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.encoding import Quantized, check_divides
from gemma_surgery.surgery.kernels import Bytes
from gemma_surgery.surgery.selection import Indices

Matrix: TypeAlias = "npt.NDArray[np.float32]"
Order: TypeAlias = 'Literal["natural", "activation"]'

DAMPING = 0.01
ORDERS = ("natural", "activation")
# From this many tokens per column on, correlations count in full. On the small trained model compensation
# without shrinkage is worse than none at 2 tokens per column, for rounding at 4 as well.
ENOUGH_TOKENS = 8


def shrinkage(count: int, columns: int) -> float:
    """The share by which to shrink the correlations of a Hessian of few tokens, 0 to 1.

    Args:
        count: of inputs that the Hessian is the mean over.
        columns: of the Hessian.
    """
    return max(0.0, 1 - count / (ENOUGH_TOKENS * columns))


def shrink(hessian: Matrix, share: float) -> None:
    """Multiply all but the diagonal by ``1 - share``, in place.

    Where columns are correlated only by chance, each counts for itself afterwards: least squares become
    ridge regression by each column's own power, and compensated rounding becomes rounding at a share of 1.

    Args:
        hessian: float32 [F, F], writeable.
        share: 0 to 1.
    """
    diagonal = np.diagonal(hessian).copy()
    hessian *= np.float32(1 - share)
    np.fill_diagonal(hessian, diagonal)


def reconstruct(weight: Matrix, hessian: Matrix, kept: Indices, damping: float = DAMPING) -> Matrix:
    """The weights of the kept columns of a linear layer that stand in for all of its columns.

    They minimize ``E |W x - W' x_kept|^2 + damping * mean(diag) * |W' - W_kept|^2``: what data say nothing
    about stays as it was, and nothing changes where all columns are kept.

    Args:
        weight: float32 [rows, F].
        hessian: float32 [F, F], symmetric.
        kept: int32 [K], distinct columns in the order of the result.
        damping: share of the mean of the kept columns' diagonal.

    Returns:
        float32 [rows, K]. Needs ``K * K + rows * F`` floats besides.

    Raises:
        SurgeryError: sizes or indices that do not fit, values that are not finite, or a Hessian that no
            damping makes positive definite.
    """
    return reconstruct_damped(weight, hessian, kept, damping)[0]


def reconstruct_damped(
    weight: Matrix, hessian: Matrix, kept: Indices, damping: float = DAMPING
) -> tuple[Matrix, float]:
    """`reconstruct`, and the damping that it took."""
    weight, hessian = _matrix(weight), _matrix(hessian)
    out = np.empty((len(weight), len(kept)), np.float32)
    with _refusals():
        used = ext.solve_reconstruct(weight, hessian, np.ascontiguousarray(kept, np.int32), damping, out)
    return out, used


def factor(hessian: Matrix, damping: float = DAMPING) -> Matrix:
    """The upper Cholesky factor U of the inverse of the damped Hessian, ``inverse = U^T U``, as GPTQ uses it.

    The inverse is never formed: of the reversed matrix J H J = L L^T it is J L^-1 J.

    Args:
        hessian: float32 [K, K], symmetric; its upper triangle is read.
        damping: share of the mean of its diagonal.

    Returns:
        float32 [K, K]. Needs ``192 * K`` floats besides.

    Raises:
        SurgeryError: as `reconstruct`.
    """
    return factor_damped(hessian, damping)[0]


def factor_damped(hessian: Matrix, damping: float = DAMPING) -> tuple[Matrix, float]:
    """`factor`, and the damping that it took."""
    hessian = _matrix(hessian)
    upper = np.empty_like(hessian)
    with _refusals():
        used = ext.solve_factor(hessian, damping, upper)
    return upper, used


def round_compensated(
    weight: Matrix, upper: Matrix, encoding: Quantized, order: Order = "natural"
) -> tuple[Bytes, Bytes, Bytes]:
    """Round to an affine encoding one column after the other; later columns make up for each one's error.

    ``natural`` takes columns as they come and fits the scale and bias of a group when its first column is
    reached, to the values that its columns have by then. ``activation`` takes the columns with the largest
    diagonal of the Hessian first, and fits scales and biases to the weights before that: groups stay as they
    are. Fits are least squares in which an error of column j counts as in the output, ``1 / upper[j, j]^2``.
    Codes are the nearest ones for the scale and bias as stored.

    Args:
        weight: float32 [rows, K].
        upper: float32 [K, K], of `factor`, in the order of the columns for either `order`.
        encoding: mode ``affine`` or ``symmetric``; K must be a multiple of its groups.
        order: in which columns are rounded.

    Returns:
        weight, scales and biases as stored: uint8 [rows, bytes of a row]. Needs ``1.25 * rows * K`` floats
        besides, and with ``activation`` two matrices [K, K].

    Raises:
        SurgeryError: sizes that do not fit, values that are not finite or too large for the encoding.
    """
    _check_order(order)
    upper = _matrix(upper)
    columns = None
    with _refusals():
        if order == "activation":
            columns, upper = _by_activation(upper)
    return _round(weight, upper, columns, encoding)


def round_calibrated(
    weight: Matrix,
    hessian: Matrix,
    encoding: Quantized,
    order: Order = "activation",
    damping: float = DAMPING,
) -> tuple[tuple[Bytes, Bytes, Bytes], float]:
    """`factor` and `round_compensated` in one, and the damping that it took.

    With ``activation`` the Hessian is put in that order before it is factored, once, where
    `round_compensated` has to get it back out of the factor: less than half the time.

    Args:
        weight: float32 [rows, K].
        hessian: float32 [K, K], symmetric.
        encoding: as `round_compensated`.
        order: in which columns are rounded.
        damping: as `factor`.

    Returns:
        weight, scales and biases as stored, and the damping. Needs as much as `round_compensated`, and a
        matrix [K, K] for the factor.

    Raises:
        SurgeryError: as `factor` and `round_compensated`.
    """
    _check_order(order)
    hessian = _matrix(hessian)
    columns = None
    if order == "activation":
        columns = _by_diagonal(hessian)
        hessian = hessian[np.ix_(columns, columns)]
    upper, used = factor_damped(hessian, damping)
    return _round(weight, upper, columns, encoding), used


def _round(
    weight: Matrix, upper: Matrix, columns: Indices | None, encoding: Quantized
) -> tuple[Bytes, Bytes, Bytes]:
    if not encoding.has_biases:
        raise SurgeryError("round_compensated", f"need mode `affine` or `symmetric`, got `{encoding.mode}`")
    weight = _matrix(weight)
    rows, cols = weight.shape
    check_divides("weight", cols, encoding)
    native = ext.Encoding(encoding.scale_dtype, encoding.bits, encoding.group_size, encoding.mode)
    codes, scales, biases = (np.empty((rows, size), np.uint8) for size in native.row_bytes(cols))
    with _refusals():
        ext.solve_round(weight, upper, columns, native, codes, scales, biases)
    return codes, scales, biases


def _check_order(order: Order) -> None:
    if order not in ORDERS:
        raise SurgeryError("round_compensated", f"need an order out of {', '.join(ORDERS)}, got `{order}`")


def _by_activation(upper: Matrix) -> tuple[Indices, Matrix]:
    """Columns by descending diagonal of the Hessian, and the factor for that order."""
    hessian = np.empty_like(upper)
    ext.solve_hessian(upper, hessian)
    columns = _by_diagonal(hessian)
    ext.solve_factor(hessian[np.ix_(columns, columns)], 0.0, hessian)
    return columns, hessian


def _by_diagonal(hessian: Matrix) -> Indices:
    return np.argsort(-np.diagonal(hessian), kind="stable").astype(np.int32)


def _matrix(array: Matrix) -> Matrix:
    if array.ndim != 2:
        raise SurgeryError("solver", f"need a matrix, got an array of {array.ndim} dimensions")
    return np.ascontiguousarray(array, np.float32)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the native code refuses, as the error that users see."""
    try:
        yield
    except ValueError as error:
        where, _, message = str(error).removeprefix("[").partition("] ")
        raise SurgeryError(where, message) from error
