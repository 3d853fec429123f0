"""`ops.requantize` writes the bytes that a surgery writes."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import BITS, DTYPES, GROUP_SIZES, cpu_options, exact, random_array, random_table, raw

from gemma_surgery import ops
from gemma_surgery._native import ext

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
ROWS, COLS = 20, 256


def by_surgery(
    parts: tuple[mx.array, ...],
    source: ext.Encoding,
    columns: np.ndarray | None,
    target: ext.Encoding,
    refine: bool = False,
) -> list[np.ndarray | None]:
    """The function that writes checkpoints, on the same bytes."""
    cols = COLS if columns is None else len(columns)
    rows = parts[0].shape[0]
    out = [np.zeros(rows * size, np.uint8) if size else None for size in target.row_bytes(cols)]
    given = [raw(p) for p in parts] + [None] * (3 - len(parts))
    ext.requantize(*given, source, rows, COLS, columns, target, *out, refine=refine)
    return out


def assert_same_bytes(got: tuple[mx.array, ...], wanted: list[np.ndarray | None]) -> None:
    for part, stored in zip(got, wanted, strict=False):
        assert raw(part).tobytes() == stored.tobytes()
    assert all(stored is None for stored in wanted[len(got) :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_a_surgery(bits: int, group_size: int, dtype: str) -> None:
    table = random_table(ROWS, COLS, 4, 64, dtype)
    dense = random_array(5, ROWS, COLS, dtype=dtype)
    columns = np.concatenate([np.arange(200), np.full(56, -1)]).astype(np.int32)
    target = ext.Encoding(STORED[dtype], bits, group_size)
    for parts, source, packing in (
        (table.parts, ext.Encoding(STORED[dtype], 4, 64), table.packing),
        ((dense,), ext.Encoding(STORED[dtype]), {}),
    ):
        for chosen in (None, columns):
            for refine in (False, True):
                got = ops.requantize(
                    *parts,
                    **packing,
                    columns=None if chosen is None else mx.array(chosen),
                    target=(group_size, bits),
                    refine=refine,
                )
                assert_same_bytes(got, by_surgery(parts, source, chosen, target, refine))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_target_has_the_decoded_values(dtype: str) -> None:
    table = random_table(ROWS, COLS, 3, 32, "bfloat16")
    got = ops.requantize(*table.parts, **table.packing, target=DTYPES[dtype])
    wanted = by_surgery(table.parts, ext.Encoding("BF16", 3, 32), None, ext.Encoding(STORED[dtype]))
    assert_same_bytes((got,), wanted)
    assert got.dtype == DTYPES[dtype]


def test_scales_may_change_their_dtype() -> None:
    table = random_table(ROWS, COLS, dtype="bfloat16")
    got = ops.requantize(*table.parts, target=(32, 8), scales_dtype=mx.float16)
    assert [part.dtype for part in got] == [mx.uint32, mx.float16, mx.float16]
    wanted = by_surgery(table.parts, ext.Encoding("BF16", 4, 64), None, ext.Encoding("F16", 8, 32))
    assert_same_bytes(got, wanted)


def test_rows_are_taken_and_minus_one_is_a_row_of_zeros() -> None:
    table = random_table(ROWS, COLS, dtype="bfloat16")
    rows = [5, -1, 19, 5]
    got = ops.requantize(*table.parts, rows=mx.array(rows), target=mx.float32)
    wanted = np.stack([np.zeros(COLS) if r < 0 else table.dense()[r] for r in rows])
    np.testing.assert_allclose(exact(got), wanted, rtol=0, atol=1e-7)
    packed = ops.requantize(*table.parts, rows=mx.array(rows), target=(64, 4))
    for part, source in zip(packed, table.parts, strict=True):
        for position, r in enumerate(rows):
            expected = mx.zeros_like(source[0]) if r < 0 else source[r]
            assert raw(part[position]).tobytes() == raw(expected).tobytes()


def test_rows_and_columns_go_together_and_padding_is_exactly_zero() -> None:
    dense = random_array(3, ROWS, 100)
    columns = mx.concatenate([mx.arange(100), mx.full((28,), -1, mx.int32)])
    parts = ops.requantize(dense, columns=columns, rows=mx.array([7, 3]), target=(32, 8))
    decoded = mx.dequantize(*parts, 32, 8)
    np.testing.assert_allclose(exact(decoded[:, :100]), exact(dense[mx.array([7, 3])]), atol=0.02)
    assert (np.array(decoded[:, 100:]) == 0).all()


def test_it_agrees_with_plain_mlx_within_half_a_step() -> None:
    table = random_table(ROWS, COLS)
    columns = mx.arange(0, COLS, 2)
    ours = mx.dequantize(*ops.requantize(*table.parts, columns=columns, target=(32, 6)), 32, 6)
    plain = mx.dequantize(*ops.plain.requantize(*table.parts, columns=columns, target=(32, 6)), 32, 6)
    step = mx.abs(ops.plain.requantize(*table.parts, columns=columns, target=(32, 6))[1]).max()
    assert mx.abs(ours - plain).max() <= step


def test_bytes_do_not_depend_on_instruction_set_or_threads() -> None:
    table = random_table(ROWS, COLS, dtype="bfloat16")
    wanted = [raw(part) for part in ops.requantize(*table.parts, target=(128, 5))]
    for isa in ext.available_isas():
        for threads in (1, 3):
            with cpu_options(isa, threads):
                got = ops.requantize(*table.parts, target=(128, 5))
                assert [raw(part).tobytes() for part in got] == [part.tobytes() for part in wanted]


def assert_raises_when_waited_for(parts: object, message: str) -> None:
    """An evaluation that is over before it is waited for leaves its error to the stream."""
    with pytest.raises(RuntimeError, match=message):
        mx.eval(parts)
        mx.synchronize(mx.default_stream(mx.cpu))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"columns": mx.array([0, 256])}, "between -1 and 255, got 256 at position 1"),
        ({"columns": mx.array([-2] * 32)}, "between -1 and 255, got -2 at position 0"),
        ({"rows": mx.array([0, 20])}, "between -1 and 19, got 20 at position 1"),
    ],
)
def test_an_index_outside_the_matrix_is_refused(choice: dict[str, mx.array], message: str) -> None:
    table = random_table(ROWS, COLS)
    with pytest.raises(ValueError, match=rf"^\[requantize\] need (columns|rows) {message}$"):
        ops.requantize(*table.parts, **choice, target=mx.float32)
    lazy = {name: indices + mx.zeros_like(indices) for name, indices in choice.items()}
    assert_raises_when_waited_for(ops.requantize(*table.parts, **lazy, target=mx.float32), message)


def test_a_value_that_is_not_finite_raises() -> None:
    dense = mx.ones((3, 64))
    dense[2, 5] = mx.inf
    assert_raises_when_waited_for(
        ops.requantize(dense, target=(64, 4)), "need finite values.*row 2, source column 5"
    )
    good = ops.requantize(mx.ones((3, 64)), target=(64, 4))
    mx.eval(good)
