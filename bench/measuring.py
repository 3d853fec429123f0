"""The fixture `measure`: times one implementation of one case and notes what it is to be held against."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from limits import Probe
from results import measurement_of
from work import Work

# Seconds that the rounds of one measurement take together, if they are short enough.
BUDGET, QUICK_BUDGET = 1.5, 0.4
LEAST_ROUNDS, QUICK_LEAST_ROUNDS, MOST_ROUNDS = 5, 3, 200
# A run as long as this is timed once: stock MLX, where a tenth more or less changes nothing.
LONG_SECONDS, QUICK_LONG_SECONDS = 8.0, 0.5


class Measure:
    """Calls `benchmark.pedantic` with as many rounds as fit, between two measurements of the limits."""

    def __init__(self, benchmark: Any, probe: Probe, quick: bool) -> None:
        self.benchmark = benchmark
        self.probe = probe
        self.quick = quick

    def __call__(
        self,
        work: Work,
        who: str,
        run: Callable[..., object],
        *,
        calls: int = 1,
        share: float = 1.0,
        setup: Callable[[], Any] | None = None,
    ) -> None:
        """Time `run`.

        Args:
            work: of one call.
            who: `ours`, or the name of what ours is compared with.
            run: does `calls` calls, each `share` of the work, and waits for the results.
            setup: untimed, before every round; returns arguments for `run` as `(args, kwargs)`.
        """
        before = self.probe.measure()
        first = self._once(run, setup)
        if first < (QUICK_LONG_SECONDS if self.quick else LONG_SECONDS):
            budget = QUICK_BUDGET if self.quick else BUDGET
            least = QUICK_LEAST_ROUNDS if self.quick else LEAST_ROUNDS
            rounds = max(least, min(MOST_ROUNDS, int(budget / max(first, 1e-6))))
        else:
            rounds = 1
        self.benchmark.group = f"{work.op} {work.case}"
        self.benchmark.pedantic(run, setup=setup, rounds=rounds)
        limits = before.best(self.probe.measure())
        info = asdict(work) | asdict(limits) | {"who": who, "calls": calls, "share": share}
        stats = self.benchmark.stats.stats
        info["of_limit"] = measurement_of(info, stats.median, stats.rounds).of_limit
        self.benchmark.extra_info.update(info)

    @staticmethod
    def _once(run: Callable[..., object], setup: Callable[[], Any] | None) -> float:
        """Warm up; the second of two short runs tells how many rounds fit."""
        seconds = 0.0
        for _ in range(2):
            args, kwargs = setup() if setup else ((), {})
            begin = time.perf_counter()
            run(*args, **kwargs)
            seconds = time.perf_counter() - begin
            if seconds > QUICK_LONG_SECONDS:
                break
        return seconds
