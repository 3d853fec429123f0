"""The same bytes on every instruction set, thread count, tiling and calling thread."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from native_oracle import (
    AFFINE_BITS,
    GROUP_SIZES,
    ISAS,
    MLX_DTYPES,
    Encoding,
    Parts,
    decode,
    plain_affine_decode,
    plain_codes,
    random_matrix,
    raw,
    requantize,
    same_bytes,
    stored_to_float32,
)

from gemma_surgery._native import ext

DENSE = [Encoding(dtype) for dtype in MLX_DTYPES]
AFFINE = [
    Encoding(dtype, bits, group_size, mode)
    for dtype in MLX_DTYPES
    for bits in AFFINE_BITS
    for group_size in GROUP_SIZES
    for mode in ("affine", "symmetric")
]
MX = [Encoding("U8", mode=mode) for mode in ("mxfp4", "nvfp4", "mxfp8")]
encodings = st.sampled_from(DENSE + AFFINE + MX)


def matrix(seed: int, encoding: ext.Encoding, rows: int, cols: int, scale: float = 1.0) -> Parts:
    """Random data in any encoding, made by the portable kernels."""
    values = np.random.default_rng(seed).normal(0.0, 0.02 * scale, (rows, cols)).astype(np.float32)
    source = Encoding("F32")
    return requantize((values, None, None), source, rows, cols, encoding, isa="portable")


@st.composite
def jobs(draw: st.DrawFn) -> tuple[int, ext.Encoding, int, int, ext.Encoding, np.ndarray | None, bool]:
    source, target = draw(encodings), draw(encodings)
    rows = draw(st.integers(0, 5))
    unit = max(source.group_size, 1)
    cols = unit * draw(st.integers(1, 4 if unit > 1 else 150))
    count = max(target.group_size, 1) * draw(st.integers(0, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["all", "kept", "random", "padded"]))
    rng = np.random.default_rng(seed)
    columns: np.ndarray | None
    if kind == "all" and cols % max(target.group_size, 1) == 0:
        columns = None
    elif kind == "kept":
        columns = np.sort(rng.integers(0, cols, count)).astype(np.int32)
    elif kind == "padded":
        columns = np.arange(count, dtype=np.int32)
        columns[columns >= cols] = -1
    else:
        columns = rng.integers(-1, cols, count).astype(np.int32)
    return seed, source, rows, cols, target, columns, draw(st.booleans())


@settings(max_examples=400, deadline=None)
@given(jobs())
def test_every_instruction_set_and_thread_count_gives_the_same_bytes(job: tuple) -> None:
    seed, source, rows, cols, target, columns, refine = job
    parts = matrix(seed, source, rows, cols)
    reference = requantize(parts, source, rows, cols, target, columns, isa="portable", refine=refine)
    for isa in ISAS:
        for threads in (1, 2, 5):
            got = requantize(
                parts, source, rows, cols, target, columns, isa=isa, refine=refine, threads=threads
            )
            assert same_bytes(got, reference), (isa, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("dtype", list(MLX_DTYPES))
def test_large_matrices_agree_with_the_portable_kernels(isa: str, bits: int, dtype: str) -> None:
    x = random_matrix(np.random.default_rng(bits), dtype, 16, 4096)
    target = Encoding(dtype, bits, 64)
    columns = np.r_[np.arange(0, 4096, 3), [-1] * 42].astype(np.int32)
    for refine in (False, True):
        results = [
            requantize(
                (raw(x), None, None), Encoding(dtype), 16, 4096, target, columns, isa=name, refine=refine
            )
            for name in (isa, "portable")
        ]
        assert same_bytes(*results)


@pytest.mark.parametrize("isa", ISAS)
def test_square_sums_do_not_depend_on_tiles_or_instruction_set(isa: str) -> None:
    rows, cols = 37, 1088
    for source in (Encoding("BF16"), Encoding("F32"), Encoding("F16", 5, 32), Encoding("U8", mode="nvfp4")):
        parts = matrix(3, source, rows, cols)
        sizes = source.row_bytes(cols)
        whole = np.empty(rows)
        ext.row_square_sums(*parts, source, rows, cols, whole, isa="portable")
        columns = np.zeros(cols)
        ext.column_square_sums(*parts, source, rows, cols, columns, isa="portable")
        tiled_rows, tiled_columns = np.empty(rows), np.zeros(cols)
        for start, stop in ((0, 1), (1, 14), (14, 37)):
            tile = [
                None if part is None else part[start * size : stop * size]
                for part, size in zip(parts, sizes, strict=True)
            ]
            ext.row_square_sums(*tile, source, stop - start, cols, tiled_rows[start:stop], isa=isa)
            ext.column_square_sums(*tile, source, stop - start, cols, tiled_columns, isa=isa)
        np.testing.assert_array_equal(tiled_rows, whole)
        np.testing.assert_array_equal(tiled_columns, columns)
        values = decode(parts, source, rows, cols).astype(np.float64)
        np.testing.assert_allclose(whole, (values**2).sum(1), rtol=1e-14)
        np.testing.assert_allclose(columns, (values**2).sum(0), rtol=1e-14)


@pytest.mark.parametrize("isa", ISAS)
def test_column_sums_add_rows_strictly_in_order(isa: str) -> None:
    source = Encoding("F32")
    values = np.random.default_rng(0).normal(size=(50, 33)).astype(np.float32)
    wanted = np.zeros(33)
    for row in values:
        wanted += row.astype(np.float64) ** 2
    got = np.zeros(33)
    ext.column_square_sums(values, None, None, source, 50, 33, got, isa=isa)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", [Encoding("BF16", 4, 64), Encoding("F16", 4, 128), Encoding("F32", 3, 32)])
def test_column_sums_of_codes_are_those_of_the_float32_values(isa: str, source: ext.Encoding) -> None:
    rows, cols = 19, 2432  # more than two tiles of columns
    parts = matrix(4, source, rows, cols)
    wanted = np.random.default_rng(4).random(cols)
    got = wanted.copy()
    for row in decode(parts, source, rows, cols).astype(np.float64):
        wanted += row**2
    ext.column_square_sums(*parts, source, rows, cols, got, isa=isa)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", AFFINE_BITS)
@pytest.mark.parametrize("dtype", list(MLX_DTYPES))
def test_row_sums_of_codes_are_those_of_the_real_values(isa: str, bits: int, dtype: str) -> None:
    rows = 5
    for group_size in GROUP_SIZES:
        for mode in ("affine", "symmetric"):
            for groups in (1, 3, 16, 35):
                cols = groups * group_size
                source = Encoding(dtype, bits, group_size, mode)
                parts = matrix(bits * groups, source, rows, cols)
                got = np.empty(rows)
                ext.row_square_sums(*parts, source, rows, cols, got, isa=isa)
                codes = plain_codes(parts[0], bits, rows, cols).reshape(rows, groups, group_size)
                scale, bias = (
                    stored_to_float32(part, dtype).reshape(rows, groups).astype(np.float64)
                    for part in parts[1:]
                )
                values = codes * scale[..., None] + bias[..., None]
                np.testing.assert_allclose(got, (values**2).sum((1, 2)), rtol=1e-12)
                # The documented order: groups in 16 lanes, then a tree.
                squares, sums = (codes**2).sum(2), codes.sum(2)
                terms = (scale * scale * squares + 2.0 * scale * bias * sums) + group_size * (bias * bias)
                lanes = np.zeros((rows, 16))
                for group in range(groups):
                    lanes[:, group % 16] += terms[:, group]
                for half in (8, 4, 2, 1):
                    lanes[:, :half] += lanes[:, half : 2 * half]
                np.testing.assert_array_equal(got, lanes[:, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("order", ["kept", "shuffled", "padded", "all"])
def test_wide_rows_are_the_same_as_their_parts(isa: str, order: str) -> None:
    """Rows of several segments, whose columns are decoded by segment or all at once."""
    rng = np.random.default_rng(5)
    rows, cols, count = 3, 9216, 6400
    for source in (Encoding("BF16"), Encoding("F16", 5, 128), Encoding("U8", mode="nvfp4")):
        parts = matrix(5, source, rows, cols)
        columns: np.ndarray | None = {
            "kept": np.sort(rng.choice(cols, count, replace=False)),
            "shuffled": rng.integers(-1, cols, count),
            "padded": np.r_[np.arange(count - 100), np.full(100, -1)],
            "all": np.arange(cols),
        }[order].astype(np.int32)
        for target in (Encoding("BF16", 4, 64), Encoding("F16", 3, 32), Encoding("U8", mode="mxfp8")):
            given = None if order == "all" else columns
            whole = requantize(parts, source, rows, cols, target, given, isa=isa, refine=True)
            unit = target.group_size * 7
            for start in range(0, len(columns), unit):
                piece = columns[start : start + unit]
                got = requantize(parts, source, rows, cols, target, piece, isa=isa, refine=True)
                for part, full, size, offset in zip(
                    got, whole, target.row_bytes(len(piece)), target.row_bytes(start), strict=True
                ):
                    if full is not None:
                        wide = full.view(np.uint8).reshape(rows, -1)[:, offset : offset + size]
                        np.testing.assert_array_equal(part.view(np.uint8).reshape(rows, -1), wide)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cols", [1, 15, 16, 17, 47])
def test_row_sums_of_any_width_use_sixteen_lanes(isa: str, cols: int) -> None:
    values = np.random.default_rng(cols).normal(size=(3, cols)).astype(np.float32)
    lanes = np.zeros((3, 16))
    for column in range(cols):
        lanes[:, column % 16] += values[:, column].astype(np.float64) ** 2
    for half in (8, 4, 2, 1):
        lanes[:, :half] += lanes[:, half : 2 * half]
    got = np.empty(3)
    ext.row_square_sums(values, None, None, Encoding("F32"), 3, cols, got, isa=isa)
    np.testing.assert_array_equal(got, lanes[:, 0])


@pytest.mark.parametrize("isa", ISAS)
def test_decoding_agrees_with_the_plain_definition_on_every_instruction_set(isa: str) -> None:
    for encoding in AFFINE:
        if encoding.mode == "affine":
            parts = matrix(9, encoding, 3, 384)
            got = requantize(parts, encoding, 3, 384, Encoding("F32"), isa=isa)[0].view(np.float32)
            np.testing.assert_array_equal(got.reshape(3, 384), plain_affine_decode(parts, encoding, 3, 384))


def test_python_threads_share_the_kernels_on_distinct_outputs() -> None:
    source, target = Encoding("BF16"), Encoding("BF16", 4, 64)
    parts = matrix(1, source, 64, 2048)
    reference = requantize(parts, source, 64, 2048, target)
    barrier = threading.Barrier(4)

    def work(_: int) -> bool:
        barrier.wait()
        return all(
            same_bytes(requantize(parts, source, 64, 2048, target, threads=1 + i % 2), reference)
            for i in range(10)
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
