"""What is read off the logits without writing them: argmax, top k, log-probabilities."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import BITS, DTYPES, ISAS, Table, cpu_options, exact, random_array, random_table, raw

from gemma_surgery import ops


def spread_table(rows: int, cols: int) -> Table:
    """Distinct rows, so that no two logits are nearly equal."""
    return random_table(rows, cols, 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", BITS)
def test_topk_are_the_largest_logits_in_order(bits: int, dtype: str) -> None:
    table = random_table(301, 256, bits, 64, dtype)
    h = random_array(4, 3, 256, dtype=dtype)
    logits = exact(ops.tied_logits(h, *table.parts, **table.packing, dtype=mx.float32))
    order = np.argsort(-logits, axis=-1, kind="stable")
    for k in (1, 2, 7, 64, 301):
        values, ids = ops.tied_topk(h, *table.parts, k, **table.packing)
        assert (values.dtype, ids.dtype) == (mx.float32, mx.int32)
        np.testing.assert_array_equal(np.array(ids), order[:, :k])
        np.testing.assert_array_equal(exact(values), np.take_along_axis(logits, order[:, :k], -1))


@pytest.mark.parametrize("tokens", [1, 2, 9, 40])
def test_argmax_is_the_first_of_topk(tokens: int) -> None:
    table = spread_table(777, 128)
    h = random_array(tokens, tokens, 128)
    value, token = ops.tied_argmax(h, *table.parts, **table.packing)
    values, ids = ops.tied_topk(h, *table.parts, 3, **table.packing)
    assert value.shape == token.shape == (tokens,)
    np.testing.assert_array_equal(np.array(token), np.array(ids[:, 0]))
    np.testing.assert_array_equal(np.array(value), np.array(values[:, 0]))


def test_equal_logits_come_in_the_order_of_rows() -> None:
    one = random_table(1, 64)
    weight, scales, biases = (mx.repeat(part, 100, axis=0) for part in one.parts)
    for threads in (1, 2):
        with cpu_options(threads=threads):
            for h in (random_array(1, 64), random_array(1, 12, 64)):
                ids = ops.tied_topk(h, weight, scales, biases, 9)[1]
                assert (np.array(ids) == np.arange(9)).all()
                assert (np.array(ops.tied_argmax(h, weight, scales, biases)[1]) == 0).all()


def test_ids_are_original_ids_where_a_map_is_given() -> None:
    table = spread_table(50, 64)
    h = random_array(1, 4, 64)
    inverse = mx.array(np.random.default_rng(1).permutation(50).astype(np.int32) + 1000)
    rows = ops.tied_topk(h, *table.parts, 5, **table.packing)[1]
    mapped = ops.tied_topk(h, *table.parts, 5, inverse, **table.packing)[1]
    np.testing.assert_array_equal(np.array(mapped), np.array(inverse[rows]))
    first = ops.tied_argmax(h, *table.parts, inverse, **table.packing)[1]
    np.testing.assert_array_equal(np.array(first), np.array(mapped[:, 0]))


def test_nan_is_the_largest_as_in_mlx() -> None:
    table = spread_table(50, 64)
    h = random_array(1, 2, 64)
    h[1, 5] = mx.nan
    values, ids = ops.tied_argmax(h, *table.parts, **table.packing)
    assert np.isfinite(float(values[0])) and np.isnan(float(values[1]))
    assert int(ids[1]) == 0


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 6, 40])
def test_log_probabilities_are_those_of_the_truth(tokens: int, dtype: str, softcap: float | None) -> None:
    table = random_table(501, 256, 4, 64, dtype)
    h = random_array(tokens, tokens, 256, dtype=dtype)
    targets = np.random.default_rng(tokens).integers(0, 501, tokens)
    truth = exact(h) @ table.dense().T
    truth = truth if softcap is None else softcap * np.tanh(truth / softcap)
    sums = np.log(np.exp(truth - truth.max(-1, keepdims=True)).sum(-1)) + truth.max(-1)
    got, got_sums = ops.tied_logprob(h, mx.array(targets), *table.parts, softcap)
    assert got.dtype == got_sums.dtype == mx.float32
    np.testing.assert_allclose(np.array(got_sums), sums, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(np.array(got), truth[np.arange(tokens), targets] - sums, rtol=1e-5, atol=4e-5)


def test_all_probabilities_sum_to_one() -> None:
    table = random_table(97, 64)
    h = mx.repeat(random_array(1, 1, 64), 97, axis=0)
    log_probs = ops.tied_logprob(h, mx.arange(97), *table.parts)[0]
    assert abs(np.exp(exact(log_probs)).sum() - 1) < 1e-5


def test_a_token_without_a_row_has_no_probability() -> None:
    table = random_table(20, 64)
    got, sums = ops.tied_logprob(random_array(1, 3, 64), mx.array([-1, 4, -1]), *table.parts)
    assert np.isneginf(np.array(got)).tolist() == [True, False, True]
    assert np.isfinite(np.array(sums)).all()


def test_large_logits_do_not_overflow() -> None:
    table = random_table(40, 64)
    h = random_array(1, 2, 64) * 1e5
    got, sums = ops.tied_logprob(h, mx.array([0, 1]), *table.parts)
    wanted = ops.plain.tied_logprob(h, mx.array([0, 1]), *table.parts)
    np.testing.assert_allclose(np.array(sums), np.array(wanted[1]), rtol=1e-5)
    np.testing.assert_allclose(np.array(got), np.array(wanted[0]), rtol=1e-4, atol=1.0)


def selections(h: mx.array, table: Table) -> list[np.ndarray]:
    topk = ops.tied_topk(h, *table.parts, 20, **table.packing)
    log_probs = ops.tied_logprob(h, mx.arange(len(h)), *table.parts, **table.packing)
    return [raw(part) for part in (*topk, *log_probs)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tokens", [1, 33])
def test_selection_does_not_depend_on_instruction_set_or_threads(tokens: int, isa: str) -> None:
    table = random_table(1001, 128, 4, 32, "bfloat16")
    h = random_array(tokens, tokens, 128, dtype="bfloat16")
    wanted = selections(h, table)
    for threads in (1, 2, 3):
        with cpu_options(isa, threads):
            for got, part in zip(selections(h, table), wanted, strict=True):
                np.testing.assert_array_equal(got, part)
