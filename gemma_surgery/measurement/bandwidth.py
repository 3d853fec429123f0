"""The read bandwidth of memory: the limit of generation, which reads every weight for every token."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from gemma_surgery.errors import SurgeryError
from gemma_surgery.measurement.machine_memory import available_bytes, last_cache_bytes, usable_cores

GIB = 1 << 30
# Times the last-level cache that the buffer takes, so that hardly anything is found in it.
CACHE_TIMES = 4
# Share of the free memory that the buffer takes at most: others work on this machine, too.
MEMORY_SHARE = 0.25
# Below this nothing but overhead would be measured.
LEAST_BYTES = 16 << 20
# Passes over the buffer; the fastest counts, for only disturbance can make one slower.
PASSES = 8
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Bandwidth:
    """What was measured.

    Attributes:
        bytes_per_second: of the fastest pass.
        buffer_bytes: bytes read per pass.
        cache_bytes: of the largest cache, 0 if unknown.
        method: what read them, for people.
    """

    bytes_per_second: float
    buffer_bytes: int
    cache_bytes: int
    method: str

    @property
    def is_of_memory(self) -> bool:
        """Whether the buffer is so large that caches cannot have answered for it."""
        return self.buffer_bytes >= 2 * self.cache_bytes

    def describe(self) -> str:
        """One line for people."""
        size = f"{self.buffer_bytes / GIB:.2f} GiB"
        return f"memory read limit {self.bytes_per_second / 1e9:.1f} GB/s ({self.method} over {size})"


def measure_bandwidth(on_gpu: bool | None = None) -> Bandwidth:
    """Measure how fast this machine reads a buffer that is larger than its caches.

    On the CPU one thread per usable core adds up vectors and prefetches ahead, which memory cannot keep up
    with. On a GPU, MLX sums the buffer. It is written first, so that memory backs every page. It has 1 GiB,
    or four times the largest cache, but never more than a quarter of the free memory. The fastest of 8
    passes counts.

    Args:
        on_gpu: which memory; None for that of MLX's default device.

    Raises:
        SurgeryError: less memory is free than a measurement needs.
    """
    import mlx.core as mx

    if on_gpu is None:
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
    cache_bytes = last_cache_bytes()
    size_bytes = buffer_size(available_bytes(), cache_bytes)
    measure = _measure_gpu if on_gpu else _measure_cpu
    seconds, method = measure(size_bytes)
    return Bandwidth(size_bytes / seconds, size_bytes, cache_bytes, method)


def buffer_size(free_bytes: int, cache_bytes: int) -> int:
    """Return the bytes to read, a multiple of 4096.

    Raises:
        SurgeryError: too little memory is free.
    """
    wanted = max(GIB, CACHE_TIMES * cache_bytes)
    size_bytes = min(wanted, int(free_bytes * MEMORY_SHARE)) // PAGE_BYTES * PAGE_BYTES
    if size_bytes < LEAST_BYTES:
        raise SurgeryError(
            "bench",
            f"need {LEAST_BYTES / MEMORY_SHARE / 1e6:.0f} MB of free memory to measure its bandwidth,"
            f" got {free_bytes / 1e6:.0f} MB",
        )
    return size_bytes


def _measure_cpu(size_bytes: int) -> tuple[float, str]:
    """Seconds of the fastest pass, and how it was done."""
    from gemma_surgery._native import ext

    threads = usable_cores()
    buffer = page_aligned(size_bytes)
    best = min(ext.read_pass(buffer, threads=threads)[0] for _ in range(PASSES))
    return best, f"{ext.default_isa()} sum, {threads} threads"


def page_aligned(size_bytes: int) -> np.ndarray:
    """Return a buffer of ones, uint8, that starts at a page: no load crosses a cache line."""
    room = np.empty(size_bytes + PAGE_BYTES, np.uint8)
    start = -room.ctypes.data % PAGE_BYTES
    room.fill(1)
    return room[start : start + size_bytes]


def _measure_gpu(size_bytes: int) -> tuple[float, str]:
    import mlx.core as mx

    buffer = mx.ones((size_bytes // 4,), mx.float32)
    mx.eval(buffer)
    best = float("inf")
    # The first pass compiles the kernel.
    for _ in range(PASSES + 1):
        begin = time.perf_counter()
        mx.eval(mx.sum(buffer))
        best = min(best, time.perf_counter() - begin)
    del buffer
    mx.clear_cache()
    return best, "MLX sum on the GPU"
