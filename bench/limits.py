"""What the machine can do at most, measured right before and after whatever is held against it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import mlx.core as mx

from gemma_surgery._native import ext
from gemma_surgery.measurement.bandwidth import buffer_size, page_aligned
from gemma_surgery.measurement.machine_memory import available_bytes, last_cache_bytes

PASSES = 3
# Side of the square float32 product that stands for a GPU's arithmetic.
GPU_SIDE = 4096


@dataclass(frozen=True)
class Limits:
    """Rates of all threads together: bytes read from memory, float32 and 8-bit operations in registers."""

    read_per_second: float
    float_per_second: float
    int8_per_second: float

    def best(self, other: Limits) -> Limits:
        """The faster of both in each: nothing that disturbs a probe makes it faster."""
        return Limits(**{key: max(value, asdict(other)[key]) for key, value in asdict(self).items()})


class CpuProbe:
    """Measures limits again and again over one buffer that is larger than the caches."""

    def __init__(self) -> None:
        self.buffer = page_aligned(buffer_size(available_bytes(), last_cache_bytes()))

    def measure(self) -> Limits:
        """The fastest of a few passes."""
        seconds = min(ext.read_pass(self.buffer)[0] for _ in range(PASSES))
        return Limits(self.buffer.nbytes / seconds, ext.float_rate()[0], ext.int8_rate()[0])


class GpuProbe:
    """The same on MLX's device: a sum for reading, a square product for arithmetic."""

    def __init__(self, size_bytes: int, side: int = GPU_SIDE) -> None:
        self.buffer = mx.ones((size_bytes // 4,), mx.float32)
        self.square = mx.ones((side, side), mx.float32)
        mx.eval(self.buffer, self.square)
        self.measure()

    def measure(self) -> Limits:
        """The fastest of a few passes; what 8-bit integers could do is not known."""
        reading = _fastest(lambda: mx.sum(self.buffer))
        computing = _fastest(lambda: mx.matmul(self.square, self.square))
        side = self.square.shape[0]
        return Limits(self.buffer.nbytes / reading, 2 * side**3 / computing, 0.0)


Probe = CpuProbe | GpuProbe


def make_probe() -> Probe:
    """The probe of MLX's default device."""
    if mx.default_device() == mx.Device(mx.gpu):
        return GpuProbe(buffer_size(available_bytes(), last_cache_bytes()))
    return CpuProbe()


def _fastest(function: Callable[[], mx.array]) -> float:
    best = float("inf")
    for _ in range(PASSES):
        begin = time.perf_counter()
        mx.eval(function())
        best = min(best, time.perf_counter() - begin)
    return best
