"""The kernels of the head and of the embedding against float64, over bits, groups and types."""

from __future__ import annotations

from collections.abc import Callable

import kernels as metal
import numpy as np
import pytest
from kernels import Kernels
from numbers_as_stored import DTYPES, ROUNDING, make_table, real, stored

MATRIX = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
SAME = [("float",) * 3, ("half",) * 3, ("bfloat",) * 3]
MIXED = [("bfloat", "float", "float"), ("float", "half", "bfloat")]
# Sums of 32-bit products: a few roundings of the largest term, against the largest logit.
SUM_ERROR = 2e-6
# More than one block of 256 rows, the last with an odd number.
ROWS = 2 * 256 + 45
SOFTCAP = 20.0

Count = Callable[[str], None]
Types = tuple[str, str, str]


def every_case(test: Callable[..., None]) -> Callable[..., None]:
    cases = [(types, bits, group) for types in SAME for bits, group in MATRIX]
    cases += [(types, bits, 32) for types in MIXED for bits in (3, 4)]
    return pytest.mark.parametrize(("types", "bits", "group"), cases, ids=str)(test)


def softcapped(logits: np.ndarray, softcap: float) -> np.ndarray:
    return softcap * np.tanh(logits / softcap) if softcap else logits


def log_sum(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(-1, keepdims=True)
    return (np.log(np.exp(logits - largest).sum(-1, keepdims=True)) + largest)[..., 0]


def vectors(generator: np.random.Generator, count: int, cols: int, dtype: str) -> np.ndarray:
    return stored(generator.normal(0, 1, (count, cols)), dtype)


def odd_cols(group: int) -> int:
    """Lanes of a simdgroup without a chunk, and group 32 with some that have two."""
    return {32: 544, 64: 192, 128: 128}[group]


@every_case
def test_embeddings_are_decoded_values_rounded_once(
    kernels: Kernels, generator: np.random.Generator, count_case: Count, types: Types, bits: int, group: int
) -> None:
    library = kernels.library("gather_embed", types)
    table = make_table(generator, 40, odd_cols(group), bits, group, types[1])
    ids = generator.integers(0, 40, 7).astype(np.int32)
    token_map = generator.permutation(40).astype(np.int32)
    scale = np.repeat(real(table.scales, types[1]).astype(np.float32), group, axis=1)
    bias = np.repeat(real(table.biases, types[1]).astype(np.float32), group, axis=1)
    code = np.rint((table.values - bias) / scale).astype(np.float32)
    for chosen, factor in [(None, 1.0), (token_map, 50.596443)]:
        out = np.zeros((7, table.cols), DTYPES[types[2]])
        metal.gather_embed(library, table, ids, chosen, factor, out)
        rows = ids if chosen is None else token_map[ids]
        wanted = stored(np.float32(factor) * (code * scale + bias)[rows], types[2])
        assert np.array_equal(out, wanted)
        count_case("gather_embed")


@every_case
def test_logits_are_the_sums_in_float32(
    kernels: Kernels, generator: np.random.Generator, count_case: Count, types: Types, bits: int, group: int
) -> None:
    library = kernels.library("tied_logits", types)
    table = make_table(generator, 61, odd_cols(group), bits, group, types[1])
    bias = generator.normal(0, 1, 61).astype(np.float32)
    for count, softcap, added in [(1, 0.0, None), (3, SOFTCAP, None), (6, 0.0, bias)]:
        h = vectors(generator, count, table.cols, types[0])
        out = np.zeros((count, table.rows), DTYPES[types[2]])
        metal.tied_logits(library, table, h, softcap, added, out)
        truth = softcapped(real(h, types[0]) @ table.values.T, softcap) + (0.0 if added is None else added)
        allowed = np.abs(truth) * ROUNDING[types[2]] + np.abs(truth).max() * SUM_ERROR
        assert np.all(np.abs(real(out, types[2]) - truth) <= allowed)
        count_case("tied_logits")


@every_case
def test_largest_logits_come_in_order_with_their_rows(
    kernels: Kernels, generator: np.random.Generator, count_case: Count, types: Types, bits: int, group: int
) -> None:
    library = kernels.library("tied_topk", types)
    table = make_table(generator, ROWS, group, bits, group, types[1])
    inverse_map = generator.permutation(10 * ROWS)[:ROWS].astype(np.int32)
    for count, k, mapped in [(1, 1, False), (5, 1, True), (5, 4, True)]:
        h = vectors(generator, count, group, types[0])
        values, ids = metal.tied_topk(
            library, table, h, SOFTCAP, k, inverse_map if mapped else None, seed=bits * group
        )
        truth = softcapped(real(h, types[0]) @ table.values.T, SOFTCAP)
        best = np.argsort(-truth, axis=1, kind="stable")[:, :k]
        assert np.array_equal(ids, inverse_map[best] if mapped else best)
        assert np.abs(values - np.take_along_axis(truth, best, 1)).max() <= np.abs(truth).max() * SUM_ERROR
        count_case("tied_topk")


@every_case
def test_log_probabilities_are_those_of_the_softmax(
    kernels: Kernels, generator: np.random.Generator, count_case: Count, types: Types, bits: int, group: int
) -> None:
    library = kernels.library("tied_logprob", types)
    table = make_table(generator, ROWS, group, bits, group, types[1])
    for count in [1, 5]:
        h = vectors(generator, count, group, types[0])
        targets = generator.integers(0, ROWS, count).astype(np.int32)
        targets[-1] = -1 if count > 1 else ROWS - 1
        log_probs, log_sums = metal.tied_logprob(library, table, h, targets, SOFTCAP, seed=bits * group)
        truth = softcapped(real(h, types[0]) @ table.values.T, SOFTCAP)
        sums = log_sum(truth)
        wanted = np.where(targets < 0, -np.inf, truth[np.arange(count), targets] - sums)
        assert np.abs(log_sums - sums).max() <= 1e-5 * np.abs(sums).max()
        assert np.allclose(log_probs, wanted, rtol=1e-5, atol=1e-5)
        count_case("tied_logprob")


def test_ties_go_to_the_lower_row_and_nan_above_everything(kernels: Kernels) -> None:
    library = kernels.library("tied_topk", ("float",) * 3)
    generator = np.random.default_rng(5)
    table = make_table(generator, 600, 32, 4, 32, "float")
    table.weight[:] = table.weight[0]
    table.scales[:] = 0.25
    table.biases[:] = 0.0
    table.biases[[20, 300, 599]] = 1.0
    h = np.ones((1, 32), np.float32)
    _, ids = metal.tied_topk(library, table, h, 0.0, 5, None, seed=6)
    assert ids.tolist() == [[20, 300, 599, 0, 1]]
    table.biases[450] = np.nan
    values, ids = metal.tied_topk(library, table, h, 0.0, 2, None, seed=6)
    assert ids.tolist() == [[450, 20]] and np.isnan(values[0, 0])


@pytest.mark.parametrize("k", [100, 256])
def test_many_choices_take_several_merges(kernels: Kernels, k: int) -> None:
    library = kernels.library("tied_topk", ("float",) * 3)
    generator = np.random.default_rng(k)
    table = make_table(generator, 2500, 32, 8, 32, "float")
    h = vectors(generator, 2, 32, "float")
    values, _ = metal.tied_topk(library, table, h, 0.0, k, None, seed=7)
    truth = -np.sort(-(h.astype(np.float64) @ table.values.T), axis=1)[:, :k]
    assert np.abs(values - truth).max() <= np.abs(truth).max() * SUM_ERROR


def test_fewer_rows_than_a_block_are_enough(kernels: Kernels, generator: np.random.Generator) -> None:
    table = make_table(generator, 3, 32, 4, 32, "float")
    h = vectors(generator, 2, 32, "float")
    truth = h.astype(np.float64) @ table.values.T
    _, ids = metal.tied_topk(kernels.library("tied_topk", ("float",) * 3), table, h, 0.0, 3, None, seed=8)
    assert np.array_equal(ids, np.argsort(-truth, axis=1))


def test_ids_outside_the_table_give_rows_of_nan(kernels: Kernels, generator: np.random.Generator) -> None:
    library = kernels.library("gather_embed", ("float",) * 3)
    table = make_table(generator, 4, 32, 4, 32, "float")
    out = np.zeros((4, 32), np.float32)
    metal.gather_embed(library, table, np.array([0, 4, -1, 3], np.int32), None, 1.0, out)
    assert np.isnan(out).all(1).tolist() == [False, True, True, False]
    token_map = np.array([0, -1, 9], np.int32)
    metal.gather_embed(library, table, np.array([0, 1, 2, 3], np.int32), token_map, 1.0, out)
    assert np.isnan(out).all(1).tolist() == [False, True, True, True]


def test_targets_outside_the_table_give_nan(kernels: Kernels, generator: np.random.Generator) -> None:
    library = kernels.library("tied_logprob", ("float",) * 3)
    table = make_table(generator, 4, 32, 4, 32, "float")
    h = vectors(generator, 3, 32, "float")
    targets = np.array([4, -2, 3], np.int32)
    log_probs, log_sums = metal.tied_logprob(library, table, h, targets, 0.0, seed=9)
    assert np.isnan(log_probs).tolist() == np.isnan(log_sums).tolist() == [True, True, False]
