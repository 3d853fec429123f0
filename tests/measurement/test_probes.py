"""The probes of the machine's limits do the work that they are timed for, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_surgery._native import ext

ISAS = ext.available_isas()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pages", [1, 3, 255, 256, 257, 700])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_pass_sums_every_word_of_the_buffer_once(isa, pages, threads):
    words = np.random.default_rng(pages).integers(0, 2**32, pages * 1024, np.uint32)
    seconds, total = ext.read_pass(words, threads=threads, isa=isa)
    assert total == int(words.sum(dtype=np.uint64)) % 2**32
    assert seconds > 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_a_buffer_of_broken_pages_is_refused(size):
    with pytest.raises(ValueError, match=rf"\[read_pass\] need a multiple of 4096 bytes, got {size}$"):
        ext.read_pass(np.zeros(size, np.uint8))


@pytest.mark.parametrize("isa", ISAS)
def test_rates_are_positive_and_say_what_was_counted(isa):
    for rate in (ext.float_rate, ext.int8_rate):
        per_second, method = rate(threads=1, isa=isa)
        assert 1e6 < per_second < 1e15
        assert method
