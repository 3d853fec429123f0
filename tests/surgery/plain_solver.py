"""The solver in plain NumPy and float64, as its docstrings define it."""

from __future__ import annotations

import numpy as np

from gemma_surgery._native import ext
from gemma_surgery.surgery.encoding import Quantized

Parts = tuple[np.ndarray, np.ndarray, np.ndarray]


def damped(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Dead columns count with the mean of the others, a share of which is added to the diagonal."""
    matrix = hessian.astype(np.float64)
    dead = np.diagonal(matrix) == 0
    mean = np.diagonal(matrix)[~dead].mean() if not dead.all() else 1.0
    matrix[dead, dead] = mean
    return matrix + damping * mean * np.eye(len(matrix))


def reconstruct(weight: np.ndarray, hessian: np.ndarray, kept: np.ndarray, damping: float) -> np.ndarray:
    """Float64 [rows, K] from the normal equations."""
    lost = np.setdiff1d(np.arange(weight.shape[1]), kept)
    moved = weight[:, lost].astype(np.float64) @ hessian[np.ix_(lost, kept)]
    return weight[:, kept] + np.linalg.solve(damped(hessian[np.ix_(kept, kept)], damping), moved.T).T


def factor(hessian: np.ndarray, damping: float) -> np.ndarray:
    """Float64 [K, K]: inverse, then its Cholesky factor."""
    return np.linalg.cholesky(np.linalg.inv(damped(hessian, damping))).T


def round_compensated(weight: np.ndarray, hessian: np.ndarray, encoding: Quantized, order: str) -> np.ndarray:
    """The decoded result, float64 [rows, K], in GPTQ's loop over single columns; no damping."""
    size, last = encoding.group_size, 2**encoding.bits - 1
    values = weight.astype(np.float64)
    columns = np.arange(weight.shape[1])
    if order == "activation":
        columns = np.argsort(-np.diagonal(hessian), kind="stable")
    upper = factor(hessian[np.ix_(columns, columns)], 0.0)
    costs = np.empty(len(columns))
    costs[columns] = 1 / np.square(np.diagonal(upper))
    fits = {}
    for start in range(0, len(columns), size):
        group = slice(start, start + size)
        fits[start // size] = fitted(weight[:, group], encoding, costs[group])
    result = np.empty_like(values)
    for step, column in enumerate(columns):
        if order == "natural" and column % size == 0:
            group = slice(column, column + size)
            fits[column // size] = fitted(values[:, group], encoding, costs[group])
        scale, bias = fits[column // size]
        codes = np.clip(np.rint((values[:, column] - bias) / scale), 0, last)
        result[:, column] = codes * scale + bias
        error = (values[:, column] - result[:, column]) / upper[step, step]
        values[:, columns[step:]] -= np.outer(error, upper[step, step:])
    return result


def fitted(values: np.ndarray, encoding: Quantized, costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and bias of one group per row: the best of weighted least squares from several ranges."""
    last, middle = 2**encoding.bits - 1, 2 ** (encoding.bits - 1)
    _, scales, biases = rounded(np.ascontiguousarray(values, np.float32), encoding)
    given = stored(scales, encoding)[:, 0], stored(biases, encoding)[:, 0]
    low, high = values.min(axis=1), values.max(axis=1)
    starts = [given]
    for share in (1, 0.9, 0.8, 0.7, 0.6):
        bias = (low + high) / 2 - (high - low) * share / 2
        starts.append(((high - low) * share / last, bias))
    if encoding.mode == "symmetric":
        starts = [(scale, -middle * scale) for scale, _ in starts]

    def codes_of(scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        steps = (values - bias[:, None]) / np.where(scale == 0, np.inf, scale)[:, None]
        return np.clip(np.rint(steps), 0, last)

    def cost_of(scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
        decoded = codes_of(scale, bias) * scale[:, None] + bias[:, None]
        return np.square(values - decoded) @ costs

    best, least = given, cost_of(*given)
    for start in starts:
        scale, bias = start
        for _ in range(3):
            codes = codes_of(scale, bias)
            if encoding.mode == "symmetric":
                centred = codes - middle
                scale = as_stored((centred * values) @ costs / (np.square(centred) @ costs), encoding)
                bias = -middle * scale
            else:
                total = costs.sum()
                mean, centre = codes @ costs / total, values @ costs / total
                spread = np.square(codes - mean[:, None]) @ costs
                moved = ((codes - mean[:, None]) * values) @ costs
                scale = as_stored(np.where(spread > 0, moved / np.maximum(spread, 1e-300), scale), encoding)
                bias = as_stored(centre - scale * mean, encoding)
            cost = cost_of(scale, bias)
            better = cost < least
            best = tuple(np.where(better, new, old) for new, old in zip((scale, bias), best, strict=True))
            least = np.minimum(cost, least)
    return best


def rounded(weight: np.ndarray, encoding: Quantized, refine: bool = True) -> Parts:
    """Plain rounding, each part [rows, bytes]."""
    rows, cols = weight.shape
    native = native_encoding(encoding)
    weights, scales, biases = (np.empty((rows, size), np.uint8) for size in native.row_bytes(cols))
    dense = ext.Encoding("F32")
    ext.requantize(
        weight, None, None, dense, rows, cols, None, native, weights, scales, biases, refine=refine
    )
    return weights, scales, biases


def decoded(parts: Parts, encoding: Quantized) -> np.ndarray:
    """Float32 [rows, cols]."""
    rows = len(parts[0])
    cols = parts[0].shape[1] * 8 // encoding.bits
    out = np.empty((rows, cols), np.float32)
    source = native_encoding(encoding)
    ext.requantize(*parts, source, rows, cols, None, ext.Encoding("F32"), out, None, None)
    return out


def as_stored(values: np.ndarray, encoding: Quantized) -> np.ndarray:
    """The nearest values that scales and biases are stored as, float64."""
    single = values.astype(np.float32)
    if encoding.scale_dtype == "BF16":
        bits = single.view(np.uint32)
        single = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    if encoding.scale_dtype == "F16":
        return single.astype(np.float16).astype(np.float64)
    return single.astype(np.float64)


def stored(part: np.ndarray, encoding: Quantized) -> np.ndarray:
    """Stored scales or biases as float64."""
    if encoding.scale_dtype == "BF16":
        return (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return part.view({"F16": np.float16, "F32": np.float32}[encoding.scale_dtype]).astype(np.float64)


def native_encoding(encoding: Quantized) -> ext.Encoding:
    return ext.Encoding(encoding.scale_dtype, encoding.bits, encoding.group_size, encoding.mode)


def output_error(weight: np.ndarray, result: np.ndarray, hessian: np.ndarray) -> float:
    """Trace of (W - Q) H (W - Q)^T."""
    difference = weight.astype(np.float64) - result
    return float(np.einsum("ij,jk,ik->", difference, hessian.astype(np.float64), difference, optimize=True))
