"""Products with quantized matrices against float64 truth."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import (
    BITS,
    DTYPES,
    ERROR,
    GROUP_SIZES,
    ISAS,
    assert_close,
    cpu_options,
    exact,
    random_array,
    random_table,
    raw,
)

from gemma_surgery import ops

ROWS, COLS = 83, 384


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", BITS)
class TestEveryFormat:
    def test_quantized_linear_is_the_true_product_rounded(
        self, bits: int, group_size: int, dtype: str
    ) -> None:
        table = random_table(ROWS, COLS, bits, group_size, dtype)
        for tokens in (1, 2, 7, 40):
            x = random_array(tokens, tokens, COLS, dtype=dtype)
            got = ops.quantized_linear(x, *table.parts, **table.packing)
            assert_close(got, exact(x) @ table.dense().T, dtype, ERROR[dtype])

    def test_tied_logits_are_the_true_product_rounded(self, bits: int, group_size: int, dtype: str) -> None:
        table = random_table(ROWS, COLS, bits, group_size, dtype)
        h = random_array(3, 2, 3, COLS, dtype=dtype)
        truth = exact(h) @ table.dense().T
        assert_close(ops.tied_logits(h, *table.parts, **table.packing), truth, dtype, ERROR[dtype])
        capped = ops.tied_logits(h, *table.parts, 2.0, **table.packing, dtype=mx.float32)
        assert_close(capped, 2.0 * np.tanh(truth / 2.0), "float32", 2 * ERROR[dtype])


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 127, 300])
def test_any_number_of_rows_gives_each_row_its_own_result(tokens: int) -> None:
    table = random_table(65, 256)
    x = random_array(tokens, tokens, 256)
    together = ops.quantized_linear(x, *table.parts)
    for t in {0, tokens // 2, tokens - 1}:
        alone = ops.quantized_linear(x[t], *table.parts)
        np.testing.assert_array_equal(raw(together[t]), raw(alone))


def test_four_thousand_rows_are_right() -> None:
    table = random_table(48, 128, dtype="bfloat16")
    x = random_array(1, 4096, 128, dtype="bfloat16")
    assert_close(
        ops.quantized_linear(x, *table.parts), exact(x) @ table.dense().T, "bfloat16", ERROR["bfloat16"]
    )


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 33, 64, 65])
@pytest.mark.parametrize("cols", [64, 128, 192, 640])
def test_edges_of_blocks_are_right(rows: int, cols: int) -> None:
    table = random_table(rows, cols)
    for tokens in (1, 9):
        x = random_array(rows, tokens, cols)
        assert_close(ops.quantized_linear(x, *table.parts), exact(x) @ table.dense().T, "float32")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scales_dtype", DTYPES)
def test_scales_may_have_another_dtype_than_x(dtype: str, scales_dtype: str) -> None:
    table = random_table(33, 128, dtype=scales_dtype)
    x = random_array(1, 4, 128, dtype=dtype)
    assert_close(ops.quantized_linear(x, *table.parts), exact(x) @ table.dense().T, dtype, ERROR[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bias_is_added(dtype: str) -> None:
    table = random_table(ROWS, 128, dtype=dtype)
    x, bias = random_array(1, 5, 128, dtype=dtype), random_array(2, ROWS, dtype=dtype)
    truth = exact(x) @ table.dense().T + exact(bias)
    got = ops.quantized_linear(x, *table.parts, bias)
    # Two roundings, one of the product and one of the sum.
    assert_close(got, truth, dtype, allowed={"float32": 1e-5, "float16": 1e-3, "bfloat16": 8e-3}[dtype])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", BITS)
def test_results_do_not_depend_on_instruction_set_or_threads(isa: str, bits: int) -> None:
    table = random_table(130, 512, bits, 64, "bfloat16")
    for dtype in DTYPES:
        for tokens in (1, 40):
            x = random_array(tokens, tokens, 512, dtype=dtype)
            wanted = raw(ops.quantized_linear(x, *table.parts, **table.packing))
            for threads in (1, 2, 3):
                with cpu_options(isa, threads):
                    got = ops.quantized_linear(x, *table.parts, **table.packing)
                    np.testing.assert_array_equal(raw(got), wanted)


@pytest.mark.parametrize(("mode", "allowed"), [("full", 1e-5), ("int16", 1e-4), ("int8", 2e-2)])
def test_coarser_activations_have_their_stated_error(mode: str, allowed: float) -> None:
    table = random_table(200, 512)
    for tokens in (1, 33):
        x = random_array(tokens, tokens, 512)
        got = ops.quantized_linear(x, *table.parts, activations=mode)
        assert_close(got, exact(x) @ table.dense().T, "float32", allowed)


def test_bfloat16_is_nearer_to_the_truth_than_mlx() -> None:
    table = random_table(64, 512, dtype="bfloat16")
    x = random_array(1, 2, 512, dtype="bfloat16")
    truth = exact(x) @ table.dense().T
    ours = np.abs(exact(ops.quantized_linear(x, *table.parts)) - truth).mean()
    stock = np.abs(exact(mx.quantized_matmul(x, *table.parts, True, 64, 4)) - truth).mean()
    assert ours < 0.5 * stock


def test_a_nan_reaches_its_own_row_alone() -> None:
    table = random_table(40, 128)
    x = random_array(1, 20, 128)
    x[3, 70] = mx.nan
    got = exact(ops.quantized_linear(x, *table.parts))
    assert np.isnan(got[3]).all()
    assert np.isfinite(np.delete(got, 3, axis=0)).all()
