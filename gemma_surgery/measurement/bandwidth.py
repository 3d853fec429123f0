"""The read bandwidth of memory: the limit of generation, which reads every weight for every token."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

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

    On the CPU one thread per usable core takes the maximum of its own part, as int32 and as float32:
    a vector load and a comparison per step, which memory cannot keep up with, outside the interpreter's lock.
    On a GPU, MLX sums the buffer. It is written first, so that memory backs every page. It has 1 GiB, or four
    times the largest cache, but never more than a quarter of the free memory. The fastest of 8 passes counts.

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
    size_bytes = min(wanted, int(free_bytes * MEMORY_SHARE)) // 4096 * 4096
    if size_bytes < LEAST_BYTES:
        raise SurgeryError(
            "bench",
            f"need {LEAST_BYTES / MEMORY_SHARE / 1e6:.0f} MB of free memory to measure its bandwidth,"
            f" got {free_bytes / 1e6:.0f} MB",
        )
    return size_bytes


def _measure_cpu(size_bytes: int) -> tuple[float, str]:
    """Seconds of the fastest pass, and how it was done."""
    threads = usable_cores()
    buffer = np.empty(size_bytes, np.uint8)
    bounds = [index * (size_bytes // 4096) // threads * 4096 for index in range(threads + 1)]
    parts = [buffer[start:end] for start, end in pairwise(bounds) if start < end]
    kernels: list[Callable[[np.ndarray], object]] = [
        lambda part: np.max(part.view(np.int32)),
        lambda part: np.max(part.view(np.float32)),
    ]
    with ThreadPoolExecutor(len(parts)) as pool:
        # Ones, not zeros: 0x01010101 is an ordinary number as a float, too.
        list(pool.map(lambda part: part.fill(1), parts))

        def read(kernel: Callable[[np.ndarray], object]) -> float:
            begin = time.perf_counter()
            list(pool.map(kernel, parts))
            return time.perf_counter() - begin

        best = min(read(kernel) for _ in range(PASSES) for kernel in kernels)
    return best, f"NumPy maximum, {len(parts)} threads"


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
