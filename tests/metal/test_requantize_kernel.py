"""`requantize` on the GPU gives the bytes of the CPU, wherever the CPU does not refuse."""

from __future__ import annotations

from collections.abc import Callable

import kernels as metal
import numpy as np
import pytest
from kernels import Coding, Kernels
from numbers_as_stored import DTYPES, make_table, real, stored

from gemma_surgery._native import ext

NAMES = {"float": "F32", "half": "F16", "bfloat": "BF16"}
MATRIX = [(bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 64, 128)]
PAIRS = [("float", "float"), ("half", "half"), ("bfloat", "bfloat"), ("float", "bfloat"), ("bfloat", "half")]


def native(coding: Coding) -> ext.Encoding:
    return ext.Encoding(NAMES[coding.dtype], coding.bits, coding.group if coding.bits else 0)


def on_cpu(
    source: Coding,
    parts: list[np.ndarray],
    shape: tuple[int, int],
    target: Coding,
    columns: np.ndarray | None,
) -> list[np.ndarray]:
    width = shape[1] if columns is None else len(columns)
    sizes = native(target).row_bytes(width)
    outs = [np.zeros(shape[0] * size, np.uint8) if size else None for size in sizes]
    three = (*parts, None, None)[:3]
    ext.requantize(*three, native(source), *shape, columns, native(target), *outs)
    return [out for out in outs if out is not None]


def same_bytes(got: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    return all(np.array_equal(a.view(np.uint8).reshape(-1), b) for a, b in zip(got, wanted, strict=True))


def random_source(generator: np.random.Generator, rows: int, cols: int, source: Coding) -> list[np.ndarray]:
    if source.bits:
        table = make_table(generator, rows, cols, source.bits, source.group, source.dtype)
        return [table.weight, table.scales, table.biases]
    values = generator.normal(0, 0.02, (rows, cols))
    values[0, : cols // 2] = 0.0
    values[-1] = np.abs(values[-1])
    return [stored(values, source.dtype)]


def random_columns(generator: np.random.Generator, cols: int, count: int) -> np.ndarray:
    """In no order, with zero columns, a group that is all zeros and one that moves whole."""
    columns = generator.integers(0, cols, count).astype(np.int32)
    columns[generator.random(count) < 0.02] = -1
    columns[:128] = np.arange(128)
    columns[128:256] = -1
    return columns


@pytest.mark.parametrize(("source_dtype", "dtype"), PAIRS)
@pytest.mark.parametrize(("bits", "group"), MATRIX)
def test_groups_are_the_bytes_of_the_cpu(
    kernels: Kernels,
    generator: np.random.Generator,
    count_case: Callable[[str], None],
    source_dtype: str,
    dtype: str,
    bits: int,
    group: int,
) -> None:
    library = kernels.library("requantize", (source_dtype, source_dtype, dtype))
    target = Coding(dtype, bits, group)
    rows, cols = 3, 384
    for source in [Coding(source_dtype), Coding(source_dtype, bits, group), Coding(source_dtype, 4, 64)]:
        parts = random_source(generator, rows, cols, source)
        for columns in [None, random_columns(generator, cols, 512)]:
            got = metal.requantize(
                library, source, parts, (rows, cols), target, columns, None, DTYPES, seed=bits * group
            )
            assert same_bytes(got, on_cpu(source, parts, (rows, cols), target, columns))
            count_case("requantize")


@pytest.mark.parametrize(("source_dtype", "dtype"), PAIRS)
def test_dense_values_are_the_bytes_of_the_cpu(
    kernels: Kernels,
    generator: np.random.Generator,
    count_case: Callable[[str], None],
    source_dtype: str,
    dtype: str,
) -> None:
    library = kernels.library("requantize", (source_dtype, source_dtype, dtype))
    sources = [Coding(source_dtype)] + [Coding(source_dtype, bits, group) for bits, group in MATRIX]
    for source in sources:
        parts = random_source(generator, 3, 384, source)
        columns = random_columns(generator, 384, 259)
        for chosen in [None, columns]:
            got = metal.requantize(
                library, source, parts, (3, 384), Coding(dtype), chosen, None, DTYPES, seed=1
            )
            assert same_bytes(got, on_cpu(source, parts, (3, 384), Coding(dtype), chosen))
            count_case("requantize")


def test_rows_are_taken_and_missing_ones_are_zero(kernels: Kernels, generator: np.random.Generator) -> None:
    library = kernels.library("requantize", ("bfloat", "bfloat", "bfloat"))
    source = Coding("bfloat", 4, 64)
    parts = random_source(generator, 5, 256, source)
    rows = np.array([4, -1, 0, 4], np.int32)
    taken = [np.where(rows[:, None] < 0, 0, part[rows]).astype(part.dtype) for part in parts]
    for target in [source, Coding("bfloat", 8, 32), Coding("bfloat")]:
        got = metal.requantize(library, source, parts, (5, 256), target, None, rows, DTYPES, seed=2)
        assert same_bytes(got, on_cpu(source, taken, (4, 256), target, None))


@pytest.mark.parametrize("dtype", ["float", "half", "bfloat"])
def test_zero_columns_decode_to_zero(kernels: Kernels, generator: np.random.Generator, dtype: str) -> None:
    library = kernels.library("requantize", (dtype,) * 3)
    parts = random_source(generator, 4, 128, Coding(dtype))
    columns = np.arange(128, dtype=np.int32)
    columns[::7] = -1
    for bits, group in MATRIX:
        target = Coding(dtype, bits, group)
        outs = metal.requantize(
            library, Coding(dtype), parts, (4, 128), target, columns, None, DTYPES, seed=3
        )
        dense = metal.requantize(library, target, outs, (4, 128), Coding(dtype), None, None, DTYPES, seed=3)
        assert not real(dense[0], dtype)[:, ::7].any()


def test_what_cannot_be_stored_becomes_nan(kernels: Kernels) -> None:
    library = kernels.library("requantize", ("float", "float", "half"))
    values = np.ones((1, 96), np.float32)
    values[0, 5] = np.inf
    values[0, 40] = 1e9
    columns = np.arange(128, dtype=np.int32) % 96
    columns[70] = 96
    _, scales, biases = metal.requantize(
        library, Coding("float"), [values], (1, 96), Coding("half", 4, 32), columns, None, DTYPES, seed=4
    )
    assert np.isnan(scales[0]).tolist() == [True, True, True, True]
    assert np.isnan(biases[0]).tolist() == [True, True, True, True]
