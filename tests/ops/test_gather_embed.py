"""Embeddings of ids against the definition."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import BITS, DTYPES, GROUP_SIZES, ISAS, Table, cpu_options, random_table, raw

from gemma_surgery import ops

SCALE = 50.596


def expected(table: Table, rows: np.ndarray, scale: float, dtype: str) -> mx.array:
    """float32 code * scale + bias with a rounding after each operation, times `scale`, rounded once."""
    dense = mx.dequantize(
        table.weight,
        table.scales.astype(mx.float32),
        table.biases.astype(mx.float32),
        group_size=table.group_size,
        bits=table.bits,
    )
    return (dense[mx.array(rows)] * scale).astype(DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_decoded_scaled_and_rounded_once(bits: int, group_size: int, dtype: str) -> None:
    table = random_table(60, 384, bits, group_size, dtype)
    rows = np.array([[3, 59, 0], [3, 17, 41]])
    for out in DTYPES:
        for scale in (1.0, SCALE):
            got = ops.gather_embed(
                mx.array(rows), None, *table.parts, scale, **table.packing, dtype=DTYPES[out]
            )
            np.testing.assert_array_equal(raw(got), raw(expected(table, rows, scale, out)))
    assert ops.gather_embed(mx.array(rows), None, *table.parts, **table.packing).dtype == DTYPES[dtype]


def test_float32_rows_are_those_of_mlx() -> None:
    table = random_table(60, 128)
    ids = mx.array([5, 6, 59])
    stock = mx.dequantize(table.weight[ids], table.scales[ids], table.biases[ids], 64, 4)
    np.testing.assert_array_equal(raw(ops.gather_embed(ids, None, *table.parts)), raw(stock))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", BITS)
def test_rows_do_not_depend_on_instruction_set_or_threads(bits: int, isa: str) -> None:
    table = random_table(40, 256, bits, 32, "bfloat16")
    rows = np.random.default_rng(bits).integers(0, 40, 700)
    for dtype in DTYPES:
        for threads in (1, 3):
            with cpu_options(isa, threads):
                got = ops.gather_embed(
                    mx.array(rows), None, *table.parts, SCALE, **table.packing, dtype=DTYPES[dtype]
                )
                np.testing.assert_array_equal(raw(got), raw(expected(table, rows, SCALE, dtype)))


def test_ids_go_through_the_token_map() -> None:
    table = random_table(10, 64)
    token_map = np.random.default_rng(1).integers(0, 10, 500).astype(np.int32)
    ids = np.array([0, 499, 17, 17])
    got = ops.gather_embed(mx.array(ids), mx.array(token_map), *table.parts, SCALE)
    np.testing.assert_array_equal(raw(got), raw(expected(table, token_map[ids], SCALE, "float32")))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_ids_may_be_of_any_integer_dtype(dtype: str) -> None:
    table = random_table(10, 64)
    got = ops.gather_embed(mx.array([1, 9]).astype(getattr(mx, dtype)), None, *table.parts)
    np.testing.assert_array_equal(raw(got), raw(expected(table, np.array([1, 9]), 1.0, "float32")))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (mx.array([1, 10]), "got 10 at position 1"),
        (mx.array([[0, 1], [-1, 0]]), "got -1 at position 2"),
        (mx.array([2**40], mx.int64), f"got {2**40} at position 0"),
        (mx.array(np.array([2**64 - 1], np.uint64)), f"got {2**64 - 1} at position 0"),
        (mx.array([2**32 - 1], mx.uint32), f"got {2**32 - 1} at position 0"),
        (mx.array([3, -128], mx.int8), "got -128 at position 1"),
    ],
)
def test_a_known_id_without_a_row_is_refused_and_a_lazy_one_gives_nan(ids: mx.array, message: str) -> None:
    table = random_table(10, 64)
    mx.eval(ids)
    with pytest.raises(ValueError, match=rf"^\[gather_embed\] need ids between 0 and 9, {message}$"):
        ops.gather_embed(ids, None, *table.parts)
    for dtype in DTYPES.values():
        rows = ops.gather_embed(ids + mx.zeros_like(ids), None, *table.parts, dtype=dtype).astype(mx.float32)
        outside = np.array((ids < 0) | (ids > 9))
        np.testing.assert_array_equal(np.isnan(np.array(rows)).all(-1), outside)
        np.testing.assert_array_equal(np.isnan(np.array(rows)).any(-1), outside)


def test_the_limit_is_that_of_the_map_where_there_is_one() -> None:
    table = random_table(10, 64)
    token_map = mx.array([0, 9, -1, 10], mx.int32)
    with pytest.raises(ValueError, match="need ids between 0 and 3, got 4"):
        ops.gather_embed(mx.array([4]), token_map, *table.parts)
    rows = ops.gather_embed(mx.array([0, 1, 2, 3]), token_map, *table.parts)
    assert np.isnan(np.array(rows)).all(-1).tolist() == [False, False, True, True]
