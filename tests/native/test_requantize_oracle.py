"""The fast kernels against MLX and against plain NumPy."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from native_oracle import (
    AFFINE_BITS,
    GROUP_SIZES,
    MLX_DTYPES,
    Encoding,
    as_float32,
    decode,
    empty,
    plain_affine_decode,
    plain_codes,
    random_matrix,
    raw,
    requantize,
    rms,
    same_bytes,
    stored_to_float32,
    take_columns,
)

from gemma_surgery._native import ext

ROWS, COLS = 24, 768
DTYPES = tuple(MLX_DTYPES)
MX_MODES = {"mxfp4": (32, 4), "nvfp4": (16, 4), "mxfp8": (32, 8)}


def mlx_quantized(x: mx.array, bits: int, group_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    weight, scales, biases = mx.quantize(x, group_size=group_size, bits=bits)
    return raw(weight), raw(scales), raw(biases)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
class TestAffine:
    def test_decoding_mlx_data_is_exact(self, bits: int, group_size: int, dtype: str) -> None:
        x = random_matrix(np.random.default_rng(bits), dtype, ROWS, COLS)
        parts = mlx_quantized(x, bits, group_size)
        encoding = Encoding(dtype, bits, group_size)
        got = decode(parts, encoding, ROWS, COLS)
        np.testing.assert_array_equal(got, plain_affine_decode(parts, encoding, ROWS, COLS))
        if dtype == "F32":
            stock = mx.dequantize(*mx.quantize(x, group_size=group_size, bits=bits), group_size, bits)
            np.testing.assert_array_equal(got, as_float32(stock))

    def test_scales_and_biases_are_those_of_mlx(self, bits: int, group_size: int, dtype: str) -> None:
        x = random_matrix(np.random.default_rng(bits), dtype, ROWS, COLS)
        weight, scales, biases = mlx_quantized(x, bits, group_size)
        encoding = Encoding(dtype, bits, group_size)
        got = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding)
        assert ext.equal_bytes(got[1], scales)
        assert ext.equal_bytes(got[2], biases)
        if dtype == "F32":
            assert ext.equal_bytes(got[0], weight)

    def test_codes_are_nearest_to_the_stored_scale(self, bits: int, group_size: int, dtype: str) -> None:
        x = random_matrix(np.random.default_rng(bits), dtype, ROWS, COLS)
        encoding = Encoding(dtype, bits, group_size)
        got = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding)
        scale, bias = (
            np.repeat(stored_to_float32(p, dtype).reshape(ROWS, -1), group_size, 1).astype(np.float64)
            for p in got[1:]
        )
        exact = (as_float32(x) - bias) / scale
        distance = np.abs(plain_codes(got[0], bits, ROWS, COLS) - np.clip(exact, 0, 2**bits - 1))
        assert distance.max() <= 0.5 + 1e-4

    def test_error_is_never_above_that_of_mlx(self, bits: int, group_size: int, dtype: str) -> None:
        x = random_matrix(np.random.default_rng(bits), dtype, ROWS, COLS)
        encoding = Encoding(dtype, bits, group_size)
        theirs = decode(mlx_quantized(x, bits, group_size), encoding, ROWS, COLS)
        ours = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding)
        refined = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding, refine=True)
        wanted = as_float32(x)
        plain_error = rms(decode(ours, encoding, ROWS, COLS), wanted)
        assert plain_error <= rms(theirs, wanted)
        assert rms(decode(refined, encoding, ROWS, COLS), wanted) <= plain_error

    def test_zero_columns_stay_zero_in_every_arithmetic(self, bits: int, group_size: int, dtype: str) -> None:
        rng = np.random.default_rng(bits)
        x = random_matrix(rng, dtype, ROWS, COLS)
        columns = rng.integers(-1, COLS, 512).astype(np.int32)
        columns[:group_size] = -1
        encoding = Encoding(dtype, bits, group_size)
        for refine in (False, True):
            got = requantize(
                (raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding, columns, refine=refine
            )
            zeros = columns < 0
            assert not decode(got, encoding, ROWS, 512)[:, zeros].any()
            # MLX multiplies and adds in the dtype of the scales.
            stored = [mx.array(p.view(np.uint16 if dtype != "F32" else np.uint32)) for p in got[1:]]
            scales, biases = (p.view(MLX_DTYPES[dtype]).reshape(ROWS, -1) for p in stored)
            weight = mx.array(got[0].view(np.uint32)).reshape(ROWS, -1)
            stock = as_float32(mx.dequantize(weight, scales, biases, group_size, bits))
            assert not stock[:, zeros].any()
            assert stock[:, ~zeros].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_symmetric_keeps_zero_and_stays_within_half_a_step(bits: int, dtype: str) -> None:
    rng = np.random.default_rng(bits)
    x = random_matrix(rng, dtype, ROWS, COLS)
    encoding = Encoding(dtype, bits, 64, "symmetric")
    for refine in (False, True):
        got = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding, refine=refine)
        scales, biases = (stored_to_float32(p, dtype) for p in got[1:])
        np.testing.assert_array_equal(biases, -(2.0 ** (bits - 1)) * scales)
        values = decode(got, encoding, ROWS, COLS)
        wanted = as_float32(x)
        assert not values[wanted == 0].any()
        if not refine:
            steps = np.repeat(np.abs(scales).reshape(ROWS, -1), 64, 1)
            assert (np.abs(values - wanted) <= steps * (0.5 + 2.0 ** (bits - 9))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MX_MODES)
class TestMxModes:
    def test_decoding_mlx_data_is_exact(self, mode: str, dtype: str) -> None:
        group_size, bits = MX_MODES[mode]
        x = random_matrix(np.random.default_rng(1), dtype, ROWS, COLS)
        weight, scales = mx.quantize(x, mode=mode)
        stock = mx.dequantize(weight, scales, None, group_size, bits, mode, dtype=mx.float32)
        got = decode((raw(weight), raw(scales), None), Encoding("U8", mode=mode), ROWS, COLS)
        np.testing.assert_array_equal(got, as_float32(stock))

    def test_mlx_reads_it_with_no_more_error_than_its_own(self, mode: str, dtype: str) -> None:
        group_size, bits = MX_MODES[mode]
        x = random_matrix(np.random.default_rng(2), dtype, ROWS, COLS)
        encoding = Encoding("U8", bits, group_size, mode)
        weight, scales, _ = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding)

        def through_mlx(w: mx.array, s: mx.array) -> np.ndarray:
            return as_float32(mx.dequantize(w, s, None, group_size, bits, mode, dtype=mx.float32))

        ours = through_mlx(
            mx.array(weight.view(np.uint32)).reshape(ROWS, -1), mx.array(scales).reshape(ROWS, -1)
        )
        theirs = through_mlx(*mx.quantize(x, mode=mode))
        assert rms(ours, as_float32(x)) <= rms(theirs, as_float32(x))

    def test_zero_columns_stay_zero(self, mode: str, dtype: str) -> None:
        rng = np.random.default_rng(3)
        x = random_matrix(rng, dtype, ROWS, COLS)
        columns = rng.integers(-1, COLS, 256).astype(np.int32)
        columns[40:90] = -1
        encoding = Encoding("U8", mode=mode)
        got = requantize((raw(x), None, None), Encoding(dtype), ROWS, COLS, encoding, columns)
        values = decode(got, encoding, ROWS, 256)
        assert not values[:, columns < 0].any()
        assert values[:, columns >= 0].any()


@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("cols", [1, 7, 16, 331])
def test_dense_conversion_rounds_as_mlx_does(source: str, target: str, cols: int) -> None:
    rng = np.random.default_rng(cols)
    values = (rng.normal(0, 1, (9, cols)) * 10.0 ** rng.integers(-9, 4, (9, cols))).astype(np.float32)
    x = mx.array(values).astype(MLX_DTYPES[source])
    columns = rng.integers(-1, cols, 2 * cols + 3).astype(np.int32)
    got = requantize((raw(x), None, None), Encoding(source), 9, cols, Encoding(target), columns)
    # mlx flushes some float16 subnormals on its way; NumPy rounds them correctly.
    wanted = take_columns(as_float32(x), columns)
    if target == "F16":
        expected = wanted.astype(np.float16)
    else:
        expected = raw(mx.array(wanted).astype(MLX_DTYPES[target]))
    assert got[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_half_bit_pattern_moves_and_widens_exactly(dtype: str) -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    reverse = np.arange(65535, -1, -1, dtype=np.int32)
    moved = requantize((patterns, None, None), Encoding(dtype), 1, 65536, Encoding(dtype), reverse)
    np.testing.assert_array_equal(moved[0].view(np.uint16), patterns[::-1])
    wide = decode((patterns, None, None), Encoding(dtype), 1, 65536)[0]
    expected = stored_to_float32(patterns, dtype)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(wide[finite].view(np.uint32), expected[finite].view(np.uint32))
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(expected))


def test_whole_groups_between_equal_layouts_are_copied_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    x = random_matrix(rng, "BF16", ROWS, COLS)
    encoding = Encoding("BF16", 4, 64)
    parts = mlx_quantized(x, 4, 64)
    # Groups 0 and 1, one split group, groups 5 to 11, one padded group.
    columns = np.r_[np.arange(128), np.arange(130, 194), np.arange(320, 768), np.arange(16), [-1] * 48]
    got = requantize(parts, encoding, ROWS, COLS, encoding, columns.astype(np.int32))
    groups = len(columns) // 64
    old_codes = plain_codes(parts[0], 4, ROWS, COLS)
    new_codes = plain_codes(got[0], 4, ROWS, len(columns))
    np.testing.assert_array_equal(new_codes[:, :128], old_codes[:, :128])
    np.testing.assert_array_equal(new_codes[:, 192:640], old_codes[:, 320:768])
    for old, new in zip(parts[1:], got[1:], strict=True):
        new_groups = new.view(np.uint16).reshape(ROWS, groups)
        np.testing.assert_array_equal(new_groups[:, :2], old[:, :2])
        np.testing.assert_array_equal(new_groups[:, 3:10], old[:, 5:])
    values = decode(got, encoding, ROWS, len(columns))
    assert not values[:, columns < 0].any()
    wanted = take_columns(decode(parts, encoding, ROWS, COLS), columns)
    assert rms(values, wanted) < 0.02 * rms(wanted, 0 * wanted)


def test_all_columns_of_an_equal_layout_are_a_copy() -> None:
    x = random_matrix(np.random.default_rng(6), "BF16", ROWS, COLS)
    parts = mlx_quantized(x, 4, 64)
    encoding = Encoding("BF16", 4, 64)
    assert same_bytes(requantize(parts, encoding, ROWS, COLS, encoding), parts)


def test_constant_and_tiny_groups_decode_to_what_they_were() -> None:
    encoding = Encoding("F32", 4, 64)
    rows = np.stack([np.zeros(64), np.full(64, 0.75), np.full(64, -3.0), np.full(64, 1e30)])
    x = rows.astype(np.float32)
    got = requantize((x, None, None), Encoding("F32"), 4, 64, encoding)
    np.testing.assert_array_equal(decode(got, encoding, 4, 64), x)


def gaussian(rng: np.random.Generator, cols: int) -> np.ndarray:
    return rng.normal(0, 0.02, (64, cols))


def cut(rng: np.random.Generator, cols: int) -> np.ndarray:
    """What is left of 4-bit rows when columns are taken out: the grids of several groups mixed."""
    wide = cols * 4 // 3 // 64 * 64
    encoding = Encoding("BF16", 4, 64)
    x = as_float32(mx.array(gaussian(rng, wide)).astype(mx.bfloat16))
    parts = requantize((x, None, None), Encoding("F32"), 64, wide, encoding)
    kept = np.sort(rng.choice(wide, cols, replace=False))
    return np.ascontiguousarray(decode(parts, encoding, 64, wide)[:, kept])


def awkward(rng: np.random.Generator, cols: int) -> np.ndarray:
    """Rows with outliers, far from zero, of few values, constant, tiny, huge and one-sided."""
    x = gaussian(rng, cols)
    x[:8] = 0.02 * rng.standard_t(1.5, (8, cols))
    x[8:12] += 10.0 ** np.arange(-1, 3)[:, None]
    x[12:16] = rng.choice([-0.5, 0.25], (4, cols))
    x[16:18] = 0.125
    x[18:22] *= 10.0 ** np.array([-6, -5, 4, 6])[:, None]
    x[22:26] = np.abs(x[22:26])
    x[26:30] = -np.abs(x[26:30]) - 0.3
    x[30, ::64] = 3.0
    x[31:34] = 0.0
    x[32, 5::64] = 1.0
    x[34:37] = np.arange(cols) % 16
    return x


@pytest.mark.parametrize("isa", ext.available_isas())
@pytest.mark.parametrize("draw", [gaussian, cut, awkward])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_refining_never_makes_a_group_worse(bits: int, dtype: str, draw: Callable, isa: str) -> None:
    cols = 768
    scale = 1e-3 if dtype == "F16" and draw is awkward else 1.0
    x = np.ascontiguousarray(draw(np.random.default_rng(bits), cols) * scale, np.float32)
    for group_size in GROUP_SIZES:
        for mode in ("affine", "symmetric"):
            encoding = Encoding(dtype, bits, group_size, mode)
            errors = []
            for refine in (False, True):
                parts = requantize(
                    (x, None, None), Encoding("F32"), 64, cols, encoding, refine=refine, isa=isa
                )
                difference = decode(parts, encoding, 64, cols).astype(np.float64) - x
                errors.append((difference**2).reshape(64, -1, group_size).sum(2))
            # At 5 bits and more the errors are compared as float32 sums.
            allowed = 1.0 if bits < 5 else 1.0 + 1e-5
            assert (errors[1] <= errors[0] * allowed).all(), (group_size, mode)
            if draw is not awkward and bits == 4:
                assert (errors[1] < errors[0]).mean() > 0.5


@pytest.mark.parametrize(
    ("draw", "bits", "gain"),
    [(gaussian, 4, 0.05), (cut, 4, 0.10), (gaussian, 3, 0.075), (gaussian, 2, 0.10), (cut, 6, 0.045)],
)
def test_refining_gains_what_is_documented(draw: Callable, bits: int, gain: float) -> None:
    """RMS error saved in groups of 64 with bfloat16 scales."""
    x = draw(np.random.default_rng(7), 4096)
    stored = mx.array(x.astype(np.float32)).astype(mx.bfloat16)
    encoding = Encoding("BF16", bits, 64)
    errors = [
        rms(
            decode(
                requantize((raw(stored), None, None), Encoding("BF16"), 64, 4096, encoding, refine=refine),
                encoding,
                64,
                4096,
            ),
            as_float32(stored),
        )
        for refine in (False, True)
    ]
    assert errors[1] < (1.0 - gain) * errors[0]


def test_outputs_are_written_whole() -> None:
    encoding = Encoding("BF16", 3, 32)
    x = random_matrix(np.random.default_rng(8), "F32", 3, 96)
    first = requantize((raw(x), None, None), Encoding("F32"), 3, 96, encoding)
    second = empty(encoding, 3, 96)
    for part in second:
        part[:] = 0x5A
    ext.requantize(raw(x), None, None, Encoding("F32"), 3, 96, None, encoding, *second)
    assert same_bytes(first, second)
