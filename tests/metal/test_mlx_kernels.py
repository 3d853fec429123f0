"""The harness itself: MLX's own quantization kernels, from the wheel, give what `mx` gives on the CPU."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from harness import KernelName, Launch, Library
from kernels import Kernels
from numbers_as_stored import DTYPES, real, stored, unpacked

HEADER = Path(mx.__file__).parent / "include/mlx/backend/metal/kernels/quantized.h"
MATRIX = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
TYPES = {"float": mx.float32, "half": mx.float16, "bfloat": mx.bfloat16}
USED = [
    *["get_pack_factor", "get_bytes_per_pack", "load_vector", "load_vector_safe", "qdot", "qdot_safe"],
    *["qmv_fast_impl", "qmv_impl", "affine_qmv_fast", "affine_qmv", "affine_quantize", "affine_dequantize"],
]
# What `utils.h` gives these kernels; batches are not run.
PRELUDE = """
#include <metal_stdlib>
using namespace metal;
template <typename T> struct Limits { static constexpr constant T max = T(3.0e38f); };
template <> struct Limits<half> { static constexpr constant half max = half(65504.0f); };
#define MLX_MTL_CONST static constant constexpr const
MLX_MTL_CONST int SIMD_SIZE = 32;
template <typename T, typename... A> void adjust_matrix_offsets(A...) {}
"""

pytestmark = pytest.mark.skipif(not HEADER.exists(), reason="this mlx comes without its kernel sources")


def mlx_source() -> str:
    """Of MLX's quantized.h the functions that are run: the rest needs more of the standard library."""
    blocks = re.findall(r"^template <(?:.|\n)*?^\}\n", HEADER.read_text(), re.MULTILINE)
    name = re.compile(r"(\w+)\(")
    chosen = [block for block in blocks if (found := name.search(block)) and found[1] in USED]
    assert len(chosen) == len(USED)
    return PRELUDE + "\n".join(chosen)


@pytest.fixture(scope="module", params=list(TYPES))
def mlx_library(request: pytest.FixtureRequest, kernels: Kernels) -> tuple[str, Library]:
    dtype = request.param
    names = [
        KernelName(name, f"{dtype}, {group}, {bits}{extra}")
        for name, extra in [
            ("affine_quantize", ""),
            ("affine_dequantize", ""),
            ("affine_qmv_fast", ", false"),
            ("affine_qmv", ", false"),
        ]
        for bits, group in MATRIX
    ]
    return dtype, Library(kernels.folder, f"mlx_{dtype}", mlx_source(), names)


def as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.view(mx.uint16)) if array.dtype == mx.bfloat16 else np.array(array)


def as_mlx(array: np.ndarray, dtype: str) -> mx.array:
    return mx.array(array).view(TYPES[dtype])


def test_affine_quantize_is_that_of_mlx_on_the_cpu(mlx_library: tuple[str, Library]) -> None:
    dtype, library = mlx_library
    generator = np.random.default_rng(1)
    same = total = 0
    for bits, group in MATRIX:
        rows, cols = 8, 256
        values = stored(generator.normal(0, 1, (rows, cols)), dtype)
        packed = np.zeros((rows, cols * bits // 8), np.uint8)
        scales, biases = (np.zeros((rows, cols // group), DTYPES[dtype]) for _ in range(2))
        threads = cols // (group // 32)
        library.run(
            Launch(
                KernelName("affine_quantize", f"{dtype}, {group}, {bits}"),
                [values, packed, scales, biases],
                {1, 2, 3},
                (threads // 32, rows, 1),
                (32, 1, 1),
            )
        )
        wanted = mx.quantize(as_mlx(values, dtype), group, bits, stream=mx.cpu)
        # MLX's CPU quantizer takes codes from the rounded scale, its GPU one from the exact one.
        assert np.allclose(real(scales, dtype), real(as_numpy(wanted[1]), dtype), rtol=0.01)
        codes = unpacked(packed, bits, cols), unpacked(as_numpy(wanted[0]), bits, cols)
        assert np.abs(codes[0] - codes[1]).max() <= (1 if dtype == "float" else 2)
        same += int((codes[0] == codes[1]).sum())
        total += codes[0].size
    assert same >= {"float": 1.0, "half": 0.999, "bfloat": 0.99}[dtype] * total


def test_affine_dequantize_is_that_of_mlx_on_the_cpu(mlx_library: tuple[str, Library]) -> None:
    dtype, library = mlx_library
    generator = np.random.default_rng(2)
    for bits, group in MATRIX:
        values = mx.array(generator.normal(0, 1, (4, 256)).astype(np.float32)).astype(TYPES[dtype])
        parts = mx.quantize(values, group, bits, stream=mx.cpu)
        packed, scales, biases = (as_numpy(part) for part in parts)
        out = np.zeros((4, 256), DTYPES[dtype])
        per_thread = 8 if bits in (3, 5) else 4 if bits == 6 else 8 // bits
        library.run(
            Launch(
                KernelName("affine_dequantize", f"{dtype}, {group}, {bits}"),
                [packed, scales, biases, out],
                {3},
                (256 // per_thread // 32, 4, 1),
                (32, 1, 1),
            )
        )
        wanted = as_numpy(mx.dequantize(*parts, group, bits, stream=mx.cpu))
        tolerance = {"float": 1e-6, "half": 4e-3, "bfloat": 3e-2}[dtype]
        assert np.abs(real(out, dtype) - real(wanted, dtype)).max() <= tolerance


@pytest.mark.parametrize(("kernel", "cols"), [("affine_qmv_fast", 1024), ("affine_qmv", 640)])
def test_affine_qmv_is_the_product_in_float64(
    mlx_library: tuple[str, Library], kernel: str, cols: int
) -> None:
    dtype, library = mlx_library
    generator = np.random.default_rng(3)
    rows = 16
    for bits, group in MATRIX:
        values = mx.array(generator.normal(0, 1, (rows, cols)).astype(np.float32)).astype(TYPES[dtype])
        parts = [as_numpy(part) for part in mx.quantize(values, group, bits, stream=mx.cpu)]
        x = stored(generator.normal(0, 1, (1, cols)), dtype)
        out = np.zeros((1, rows), DTYPES[dtype])
        sizes = [np.array([size], np.int32) for size in (cols, rows, 0)]
        none = [np.zeros(1, np.int64)] * 7
        library.run(
            Launch(
                KernelName(kernel, f"{dtype}, {group}, {bits}, false"),
                [*parts, x, out, *sizes, none[0].view(np.int32)[:1], *none[1:]],
                {4},
                (1, rows // 8, 1),
                (64, 1, 1),
            )
        )
        codes = unpacked(parts[0], bits, cols).reshape(rows, -1, group)
        scale, bias = (real(part, dtype)[..., None] for part in parts[1:])
        truth = real(x, dtype) @ (codes * scale + bias).reshape(rows, cols).T
        tolerance = np.abs(truth).max() * {"float": 1e-5, "half": 1e-3, "bfloat": 8e-3}[dtype]
        assert np.abs(real(out, dtype) - truth).max() <= tolerance
