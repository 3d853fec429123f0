"""Moves of packed rows and units, and byte comparison."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_surgery._native import ext


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 70), st.data())
def test_gathered_rows_are_the_source_rows_or_zeros(rows: int, row_bytes: int, data: st.DataObject) -> None:
    source = np.random.default_rng(rows).integers(1, 256, (rows, row_bytes)).astype(np.uint8)
    indices = np.array(data.draw(st.lists(st.integers(-1, rows - 1), max_size=60)), np.int32)
    out = np.full((len(indices), row_bytes), 0xEE, np.uint8)
    ext.gather_rows(source, row_bytes, indices, out)
    np.testing.assert_array_equal(out, np.where(indices[:, None] < 0, 0, source[indices]))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 6), st.integers(1, 30), st.sampled_from([1, 2, 3, 4, 8, 32]), st.data())
def test_gathered_units_are_the_source_units_or_zeros(
    rows: int, units: int, unit_bytes: int, data: st.DataObject
) -> None:
    source = np.random.default_rng(units).integers(1, 256, (rows, units, unit_bytes)).astype(np.uint8)
    indices = np.array(data.draw(st.lists(st.integers(-1, units - 1), max_size=50)), np.int32)
    out = np.full((rows, len(indices), unit_bytes), 0xEE, np.uint8)
    ext.gather_units(source, rows, units * unit_bytes, unit_bytes, indices, out)
    np.testing.assert_array_equal(out, np.where(indices[None, :, None] < 0, 0, source[:, indices]))


def test_a_read_only_source_is_accepted_and_any_dtype_is_bytes() -> None:
    source = np.arange(64, dtype=np.uint32).reshape(8, 8)
    source.flags.writeable = False
    out = np.zeros((3, 16), np.uint16)
    ext.gather_rows(source, 32, np.array([7, -1, 0], np.int32), out)
    np.testing.assert_array_equal(out.view(np.uint32)[0], source[7])
    np.testing.assert_array_equal(out.view(np.uint32)[2], source[0])


def test_a_read_only_output_is_refused() -> None:
    out = np.zeros(4, np.uint8)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        ext.gather_rows(np.ones(4, np.uint8), 4, np.array([0], np.int32), out)
    assert not out.any()


@pytest.mark.parametrize("index", [-2, 4, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_is_refused_before_anything_is_written(index: int) -> None:
    source = np.ones((4, 8), np.uint8)
    out = np.full((2, 8), 7, np.uint8)
    indices = np.array([0, index], np.int32)
    with pytest.raises(ValueError, match=f"between -1 and 3, got {index} at position 1"):
        ext.gather_rows(source, 8, indices, out)
    with pytest.raises(ValueError, match=f"between -1 and 3, got {index} at position 1"):
        ext.gather_units(source, 4, 8, 2, indices, np.full((4, 4), 7, np.uint8))
    assert (out == 7).all()


def test_sizes_that_disagree_are_refused() -> None:
    source, indices = np.ones(32, np.uint8), np.array([0], np.int32)
    with pytest.raises(ValueError, match="whole rows of 5 bytes, got 32 bytes"):
        ext.gather_rows(source, 5, indices, np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="whole rows of 0 bytes"):
        ext.gather_rows(source, 0, indices, np.zeros(0, np.uint8))
    with pytest.raises(ValueError, match="need 8 bytes of output, got 7"):
        ext.gather_rows(source, 8, indices, np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match="whole units of 3 bytes, got rows of 8 bytes"):
        ext.gather_units(source, 4, 8, 3, indices, np.zeros(12, np.uint8))
    with pytest.raises(ValueError, match="need 40 bytes of source, got 32"):
        ext.gather_units(source, 5, 8, 2, indices, np.zeros(10, np.uint8))
    with pytest.raises(ValueError, match="2\\^63"):
        ext.gather_units(source, 2**62, 8, 2, indices, np.zeros(10, np.uint8))
    with pytest.raises(ValueError, match="int32 array for `indices`"):
        ext.gather_rows(source, 8, np.array([0], np.int64), np.zeros(8, np.uint8))
    with pytest.raises(ValueError, match="C-contiguous array for `source`"):
        ext.gather_rows(np.ones((4, 8), np.uint8)[:, ::2], 4, indices, np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="C-contiguous array for `out`"):
        ext.gather_rows(source, 4, indices, np.zeros(8, np.uint8)[::2])


def test_equal_bytes_compares_sizes_and_contents() -> None:
    a = np.arange(1000, dtype=np.int32)
    b = a.copy()
    assert ext.equal_bytes(a, b)
    assert ext.equal_bytes(a, b.view(np.uint8))
    assert not ext.equal_bytes(a, b[:-1])
    b[-1] ^= 1
    assert not ext.equal_bytes(a, b)
    assert ext.equal_bytes(np.zeros(0, np.uint8), np.zeros((0, 4), np.float32))
