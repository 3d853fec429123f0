"""The probes behind the benches count what they do."""

from __future__ import annotations

import limits
import pytest
from limits import GpuProbe, Limits


def test_the_faster_of_two_measurements_counts_in_each_rate():
    assert Limits(1, 5, 3).best(Limits(2, 4, 3)) == Limits(2, 5, 3)


def test_rates_are_bytes_and_operations_over_the_fastest_time(monkeypatch):
    probe = GpuProbe(1 << 20, side=64)
    times = iter([0.5, 0.25])
    monkeypatch.setattr(limits, "_fastest", lambda _: next(times))
    assert probe.measure() == Limits((1 << 20) / 0.5, 2 * 64**3 / 0.25, 0.0)


def test_the_fastest_pass_counts(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(clock))
    assert limits._fastest(lambda: limits.mx.zeros(1)) == pytest.approx(1.0)
