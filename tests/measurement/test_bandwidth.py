"""The bandwidth probe reads more than the caches hold, and never takes what others need."""

from __future__ import annotations

import numpy as np
import pytest

from gemma_surgery._native import ext
from gemma_surgery.errors import SurgeryError
from gemma_surgery.measurement import bandwidth, machine_memory
from gemma_surgery.measurement.bandwidth import GIB, Bandwidth, buffer_size, measure_bandwidth


@pytest.mark.parametrize(
    ("free", "cache", "expected"),
    [
        (64 * GIB, 0, GIB),
        (64 * GIB, 32 << 20, GIB),
        (64 * GIB, 512 << 20, 2 * GIB),
        (2 * GIB, 512 << 20, GIB // 2),
        (1 << 26, 0, 1 << 24),
    ],
)
def test_buffer_is_larger_than_the_caches_within_a_quarter_of_the_memory(free, cache, expected) -> None:
    assert buffer_size(free, cache) == expected


def test_too_little_memory_is_one_sentence() -> None:
    with pytest.raises(SurgeryError, match="need 67 MB of free memory"):
        buffer_size(1 << 25, 0)


def test_a_buffer_that_the_caches_could_hold_is_not_called_memory() -> None:
    assert Bandwidth(1.0, 1 << 30, 1 << 29, "").is_of_memory
    assert not Bandwidth(1.0, 1 << 30, (1 << 29) + 1, "").is_of_memory


def test_the_buffer_is_read_pass_by_pass_by_every_core(monkeypatch) -> None:
    read: list[tuple[int, int]] = []

    class Native:
        default_isa = staticmethod(ext.default_isa)

        @staticmethod
        def read_pass(buffer: np.ndarray, threads: int) -> tuple[float, int]:
            read.append((buffer.nbytes, threads))
            assert buffer.ctypes.data % bandwidth.PAGE_BYTES == 0
            return ext.read_pass(buffer, threads=threads)

    monkeypatch.setattr(bandwidth, "available_bytes", lambda: 1 << 27)
    monkeypatch.setattr("gemma_surgery._native.ext", Native)
    found = measure_bandwidth(on_gpu=False)
    assert found.buffer_bytes == 1 << 25
    assert read == [(found.buffer_bytes, machine_memory.usable_cores())] * bandwidth.PASSES
    assert f"{machine_memory.usable_cores()} threads" in found.method
    # Between a tape and a register file.
    assert 1e7 < found.bytes_per_second < 1e14
    assert "GB/s" in found.describe()


def test_the_machine_tells_its_memory() -> None:
    assert machine_memory.available_bytes() > 1 << 26
    assert 0 <= machine_memory.last_cache_bytes() < 1 << 34
    assert machine_memory.usable_cores() >= 1


def test_a_container_limits_what_is_free(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(machine_memory, "_CGROUP", tmp_path)
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 2000 kB\nMemAvailable:  1000 kB\n")
    monkeypatch.setattr(machine_memory, "_MEMINFO", meminfo)
    assert machine_memory.available_bytes() == 1000 << 10
    (tmp_path / "memory.current").write_text("100\n")
    for limit, expected in (("max", 1000 << 10), ("5000", 4900), ("50", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert machine_memory.available_bytes() == expected


def test_cache_sizes_are_read_with_their_units(monkeypatch, tmp_path) -> None:
    for index, text in enumerate(("48K", "2048K", "1M", "")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}/size").write_text(f"{text}\n")
    monkeypatch.setattr(machine_memory, "_CACHES", tmp_path)
    monkeypatch.setattr(machine_memory.sys, "platform", "linux")
    assert machine_memory.last_cache_bytes() == 2 << 20
