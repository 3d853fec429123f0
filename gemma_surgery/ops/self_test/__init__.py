"""Does every op compute what it should on this machine? Small inputs, every backend, against float64.

The GPU compiles each kernel when it is first used, so it gets fewer formats than the instruction sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from gemma_surgery._native import ext
from gemma_surgery.ops.self_test.case import Case, Pair
from gemma_surgery.ops.self_test.float_cases import float_cases
from gemma_surgery.ops.self_test.quantized_cases import Format, quantized_cases

# Half a unit in the last place, relative to the value.
ROUNDING = {mx.float32: 2.0**-24, mx.float16: 2.0**-11, mx.bfloat16: 2.0**-8}
# Beyond that, of the largest true value: what 24 and 16 bits of an activation leave out.
CPU_ERROR = {mx.float32: 1e-5, mx.float16: 1e-4, mx.bfloat16: 1e-4}
# MLX's own products may take float32 in 11 bits; a wrong kernel is off by far more.
GPU_ERROR = {mx.float32: 2e-3, mx.float16: 5e-3, mx.bfloat16: 2e-2}

CPU_FORMATS = (
    Format(2, 32, mx.float16),
    Format(3, 128, mx.float32),
    Format(4, 64, mx.float32),
    Format(4, 64, mx.bfloat16),
    Format(5, 32, mx.bfloat16),
    Format(6, 64, mx.float16),
    Format(8, 128, mx.float32),
)
GPU_FORMATS = (Format(3, 32, mx.float32), Format(4, 64, mx.bfloat16))


@dataclass(frozen=True)
class Backend:
    """Where ops run: a device, and on the CPU an instruction set."""

    name: str
    device: mx.DeviceType
    isa: str = ""


@dataclass(frozen=True)
class Finding:
    """One op on one backend.

    Attributes:
        op: its name in `gemma_surgery.ops`.
        backend: as in `Backend.name`.
        ok: every case is within what is allowed.
        error: the largest error found, of the largest true value, less one rounding to the dtype.
        detail: what is wrong and where; empty when nothing is.
    """

    op: str
    backend: str
    ok: bool
    error: float
    detail: str


def available_backends() -> list[Backend]:
    """Every instruction set of this processor, best first, and the GPU where MLX has Metal."""
    backends = [Backend(isa, mx.cpu, isa) for isa in ext.available_isas()]
    return backends + ([Backend("metal", mx.gpu)] if mx.metal.is_available() else [])


def run(backends: Sequence[Backend]) -> list[Finding]:
    """Run every op on every backend.

    Args:
        backends: as `available_backends` gives them.

    Returns:
        One finding per op and backend, ops in the order of the cases within each backend.
    """
    made = {formats: list(_cases(formats)) for formats in (CPU_FORMATS, GPU_FORMATS)}
    findings = []
    for backend in backends:
        chosen = made[CPU_FORMATS if backend.device == mx.cpu else GPU_FORMATS]
        with _instruction_set(backend.isa):
            for op in dict.fromkeys(case.op for case in chosen):
                findings.append(_judge(op, backend, [case for case in chosen if case.op == op]))
    return findings


def _cases(formats: Sequence[Format]) -> Iterator[Case]:
    for form in formats:
        yield from quantized_cases(form)
    for dtype in dict.fromkeys(form.dtype for form in formats):
        yield from float_cases(dtype)


@contextmanager
def _instruction_set(isa: str) -> Iterator[None]:
    ext._set_cpu_options(isa, 0)
    try:
        yield
    finally:
        ext._set_cpu_options("", 0)


def _judge(op: str, backend: Backend, chosen: list[Case]) -> Finding:
    largest, detail = 0.0, ""
    for case in chosen:
        allowed = (CPU_ERROR if backend.device == mx.cpu else GPU_ERROR)[case.dtype]
        try:
            results = case.call(backend.device)
            mx.eval(*results)
            error = max(_error(pair) for pair in case.compare(results))
            wrong = f"off by {error:.1e} of its largest value, allowed {allowed:.0e}"
        except Exception as exception:
            error, wrong = float("inf"), f"{type(exception).__name__}: {exception}"
        largest = max(largest, error)
        if error > allowed and not detail:
            detail = f"`{op}` on {backend.name}, {case.name}: {wrong}"
    return Finding(op, backend.name, not detail, largest, detail)


def _error(pair: Pair) -> float:
    """The largest distance from the truth beyond one rounding, of the largest true value."""
    got, truth, dtype = pair
    if got.shape != truth.shape:
        return float("inf")
    # Infinities, of pruned tokens, must be where they belong; NaN belongs nowhere.
    finite = np.isfinite(truth)
    if not np.array_equal(got[~finite], truth[~finite]) or not np.isfinite(got[finite]).all():
        return float("inf")
    got, truth = got[finite], truth[finite]
    distance = np.abs(got - truth) - ROUNDING.get(dtype, 0.0) * np.abs(truth)
    size = np.abs(truth).max(initial=0.0)
    return max(float(distance.max(initial=0.0)), 0.0) / (float(size) or 1.0)
