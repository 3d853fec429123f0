"""What the modes of `quantized_linear` lose, against float64: activations without and with outliers.

Usage: ``python bench/activation_error.py [--rows 4096] [--tokens 64]``. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version

import mlx.core as mx
import numpy as np

from gemma_surgery import ops

WIDTH = 2560
BITS, GROUP_SIZE = 4, 64
# Of a trained transformer's kind: a few channels, the same in every token, far above the rest.
OUTLIER_CHANNELS, OUTLIER_FACTOR = 8, 100.0


def activations(kind: str, tokens: int) -> np.ndarray:
    """Float32 `[tokens, WIDTH]`: normally distributed, or with a few channels a hundred times as large."""
    random = np.random.default_rng(1)
    x = random.standard_normal((tokens, WIDTH))
    if kind == "outliers":
        x[:, random.choice(WIDTH, OUTLIER_CHANNELS, replace=False)] *= OUTLIER_FACTOR
    return x.astype(np.float32)


def decoded(weight: mx.array, scales: mx.array, biases: mx.array) -> np.ndarray:
    """The values that the packed matrix stands for, float64."""
    octets = np.array(weight).view(np.uint8)
    codes = np.stack([octets & 15, octets >> 4], axis=-1).reshape(len(octets), -1)
    scale, bias = (
        np.repeat(np.array(part), GROUP_SIZE, axis=1).astype(np.float64) for part in (scales, biases)
    )
    return codes * scale + bias


def errors(got: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """RMS error over RMS value, and the largest error over the largest value."""
    difference = got - truth
    rms = np.sqrt((difference**2).mean() / (truth**2).mean())
    return float(rms), float(np.abs(difference).max() / np.abs(truth).max())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096, help="of the matrix")
    parser.add_argument("--tokens", type=int, default=64, help="rows of x")
    arguments = parser.parse_args()
    mx.set_default_device(mx.cpu)
    weight = np.random.default_rng(2).standard_normal((arguments.rows, WIDTH)).astype(np.float32)
    packed = mx.quantize(mx.array(weight * WIDTH**-0.5), group_size=GROUP_SIZE, bits=BITS)
    dense = decoded(*packed)
    print(
        f"{BITS} bits in groups of {GROUP_SIZE}, {WIDTH} columns, {arguments.rows} rows, mlx {version('mlx')}"
    )
    print("| activations | mode | bits that enter | RMS error | largest error |\n|---|---|---|---|---|")
    for kind in ("normal", "outliers"):
        full = mx.array(activations(kind, arguments.tokens))
        # The halves enter as float32 arrays of their own values: no error of the result's rounding.
        x32, x16 = full, full.astype(mx.bfloat16).astype(mx.float32)
        for mode, bits in (("full", 24), ("int16", 16), ("int8", 8)):
            got = ops.quantized_linear(x32, *packed, group_size=GROUP_SIZE, bits=BITS, activations=mode)
            truth = np.array(x32).astype(np.float64) @ dense.T
            rms, largest = errors(np.array(got).astype(np.float64), truth)
            print(f"| {kind}, float32 | `{mode}` | {bits} | {rms:.1e} | {largest:.1e} |")
        # What `full` does to bfloat16: its values in 16 bits per group.
        got = ops.quantized_linear(x16, *packed, group_size=GROUP_SIZE, bits=BITS, activations="int16")
        rms, largest = errors(np.array(got).astype(np.float64), np.array(x16).astype(np.float64) @ dense.T)
        print(f"| {kind}, bfloat16 | `full` | 16 | {rms:.1e} | {largest:.1e} |")


if __name__ == "__main__":
    main()
