from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bench_runs import MACHINE

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a run's JSON."""

    def write(*benchmarks: dict, name: str = "run.json", **machine: object) -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"machine_info": MACHINE | machine, "benchmarks": list(benchmarks)}))
        return path

    return write
