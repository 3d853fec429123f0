"""eval_gpu end to end: embedded sources, constants, buffers, grids and tiles, dispatches run right here."""

from __future__ import annotations

import numpy as np
import pytest
from host_side import MLX, HostSide, find_cmake
from kernels import KERNELS, SOURCES, Kernels, Table, source_text
from numbers_as_stored import DTYPES, make_table, real, stored

SOFTCAP = 20.0
ROWS = 600
COLS = 64


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, kernels: Kernels) -> HostSide:
    if not (SOURCES.parent / "primitives").exists() or find_cmake() is None:
        pytest.skip("needs a checkout and cmake")
    if not (MLX / "include/mlx/array.h").exists():
        pytest.skip("this mlx comes without headers")
    return HostSide(tmp_path_factory.mktemp("host_side"), kernels)


@pytest.fixture
def table(generator: np.random.Generator) -> Table:
    return make_table(generator, ROWS, COLS, 4, 32, "bfloat")


def parts_of(table: Table) -> list[np.ndarray]:
    return [table.weight, table.scales, table.biases]


def logits(h: np.ndarray, table: Table) -> np.ndarray:
    return SOFTCAP * np.tanh(real(h, "bfloat") @ table.values.T / SOFTCAP)


def test_embedded_sources_are_the_files(host: HostSide) -> None:
    for file in KERNELS:
        types = ("bfloat", "half", "float")
        assert host.source(file, types) == source_text(file, types)


def test_sources_are_ascii_as_the_metal_compiler_is_told() -> None:
    for path in [*SOURCES.glob("*.h"), *SOURCES.glob("*.metal")]:
        path.read_text().encode("ascii")


def test_embeddings_are_the_rows_of_their_ids(
    host: HostSide, generator: np.random.Generator, table: Table
) -> None:
    ids = generator.integers(0, ROWS, (2, 3)).astype(np.int32)
    token_map = generator.permutation(ROWS).astype(np.int32)
    for mapped in (False, True):
        out = np.zeros((2, 3, COLS), np.float32)
        inputs = [ids, *parts_of(table), *([token_map] if mapped else [])]
        host.run("gather_embed", inputs, [out], 4, 32, 2.0)
        rows = token_map[ids] if mapped else ids
        assert np.abs(out - 2 * table.values[rows]).max() <= 1e-6


def test_strided_ids_and_weights_are_copied_first(
    host: HostSide, generator: np.random.Generator, table: Table
) -> None:
    ids = generator.integers(0, ROWS, (4, 3)).astype(np.int32).T
    weight = np.array(table.weight.T, order="C").T
    out = np.zeros((3, 4, COLS), np.float32)
    host.run("gather_embed", [ids, weight, table.scales, table.biases], [out], 4, 32, 1.0)
    assert np.abs(out - table.values[ids]).max() <= 1e-6
    assert host.dispatches == ["strided_copy", "strided_copy", "gather_embed"]


@pytest.mark.parametrize("count", [1, 3, 11])
def test_logits_of_several_tiles_are_those_of_each_row(
    host: HostSide, generator: np.random.Generator, table: Table, count: int
) -> None:
    h = stored(generator.normal(0, 1, (count, COLS)), "bfloat")
    out = np.zeros((count, ROWS), np.float32)
    host.run("tied_logits", [h, *parts_of(table)], [out], 4, 32, SOFTCAP)
    assert np.abs(out - logits(h, table)).max() <= 1e-5
    # A dispatch here may hold 2^18 products, four rows of h.
    assert len(host.dispatches) == -(-count // 4)


@pytest.mark.parametrize("biased", [False, True])
def test_quantized_linear_adds_its_bias_in_float32(
    host: HostSide, generator: np.random.Generator, table: Table, biased: bool
) -> None:
    x = stored(generator.normal(0, 1, (2, 3, COLS)), "half")
    bias = generator.normal(0, 1, ROWS).astype(np.float32)
    out = np.zeros((2, 3, ROWS), np.float16)
    host.run("quantized_linear", [x, *parts_of(table), *([bias] if biased else [])], [out], 4, 32)
    truth = real(x, "half") @ table.values.T + (bias if biased else 0.0)
    assert np.abs(out - truth).max() <= np.abs(truth).max() * 2.0**-11


def test_strided_rows_are_copied_first(host: HostSide, generator: np.random.Generator, table: Table) -> None:
    h = np.array(stored(generator.normal(0, 1, (2, 3, COLS)), "bfloat"))
    view = h.transpose(1, 0, 2)
    out = np.zeros((3, 2, ROWS), np.float32)
    host.run("tied_logits", [view, *parts_of(table)], [out], 4, 32, SOFTCAP)
    assert np.abs(out - logits(view, table)).max() <= 1e-5
    assert host.dispatches[0] == "strided_copy"


@pytest.mark.parametrize(
    ("count", "k", "mapped"), [(1, 1, False), (9, 1, True), (5, 7, True), (3, 256, False)]
)
def test_largest_logits_of_several_tiles_come_in_order(
    host: HostSide, generator: np.random.Generator, table: Table, count: int, k: int, mapped: bool
) -> None:
    h = stored(generator.normal(0, 1, (count, COLS)), "bfloat")
    inverse_map = generator.permutation(9 * ROWS)[:ROWS].astype(np.int32)
    values, ids = np.zeros((count, k), np.float32), np.zeros((count, k), np.int32)
    inputs = [h, *parts_of(table), *([inverse_map] if mapped else [])]
    host.run("tied_topk", inputs, [values, ids], 4, 32, SOFTCAP, k)
    truth = logits(h, table)
    best = np.argsort(-truth, axis=1, kind="stable")[:, :k]
    assert np.abs(values - np.take_along_axis(truth, best, 1)).max() <= 1e-5
    if k < 256:
        assert np.array_equal(ids, inverse_map[best] if mapped else best)


@pytest.mark.parametrize("count", [1, 10])
def test_log_probabilities_of_several_tiles_are_those_of_the_softmax(
    host: HostSide, generator: np.random.Generator, table: Table, count: int
) -> None:
    h = stored(generator.normal(0, 1, (count, COLS)), "bfloat")
    targets = generator.integers(0, ROWS, count).astype(np.int32)
    log_probs, log_sums = np.zeros(count, np.float32), np.zeros(count, np.float32)
    host.run("tied_logprob", [h, targets, *parts_of(table)], [log_probs, log_sums], 4, 32, SOFTCAP)
    truth = logits(h, table)
    sums = np.log(np.exp(truth).sum(1))
    assert np.allclose(log_sums, sums, rtol=1e-5)
    assert np.allclose(log_probs, truth[np.arange(count), targets] - sums, atol=1e-4)


def test_requantize_takes_rows_and_columns(
    host: HostSide, generator: np.random.Generator, table: Table
) -> None:
    columns = generator.permutation(COLS).astype(np.int32)
    rows = np.array([5, -1, 599], np.int32)
    taken = np.where(rows[:, None] < 0, 0, table.values[rows][:, columns])
    dense = np.zeros((3, COLS), DTYPES["bfloat"])
    host.run_requantize([*parts_of(table), columns, rows], [dense], (2, 4, 32), (2, 0, 0), (True, True))
    assert np.array_equal(dense, stored(taken, "bfloat"))
    outs = [np.zeros((3, COLS * 8 // 32), np.uint32), *[np.zeros((3, 2), np.float32) for _ in range(2)]]
    host.run_requantize([*parts_of(table), columns, rows], outs, (2, 4, 32), (0, 8, 32), (True, True))
    again = np.zeros((3, COLS), np.float32)
    host.run_requantize(outs, [again], (0, 8, 32), (0, 0, 0), (False, False))
    assert np.abs(again - taken).max() <= np.abs(outs[1]).max()


def test_requantize_says_that_the_search_needs_a_cpu(host: HostSide, table: Table) -> None:
    out = np.zeros((ROWS, COLS), np.float32)
    with pytest.raises(ValueError, match=r"^\[requantize\] need refine=False on a GPU stream"):
        host.run_requantize(parts_of(table), [out], (2, 4, 32), (0, 0, 0), (False, False), refine=True)


def test_too_many_choices_are_refused(host: HostSide, generator: np.random.Generator, table: Table) -> None:
    h = stored(generator.normal(0, 1, (1, COLS)), "bfloat")
    outs = [np.zeros((1, 257), np.float32), np.zeros((1, 257), np.int32)]
    with pytest.raises(ValueError, match=r"^\[tied_topk\] need k of at most 256 on a GPU stream, got 257$"):
        host.run("tied_topk", [h, *parts_of(table)], outs, 4, 32, 0.0, 257)


def test_nothing_in_gives_nothing_out(host: HostSide, table: Table) -> None:
    none = np.zeros((0, COLS), np.uint16)
    host.run("tied_logits", [none, *parts_of(table)], [np.zeros((0, ROWS), np.float32)], 4, 32, 0.0)
    outs = [np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int32)]
    host.run("tied_topk", [none, *parts_of(table)], outs, 4, 32, 0.0, 1)
    assert host.dispatches == []
