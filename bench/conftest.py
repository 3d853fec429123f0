"""Options and fixtures of the benches; see docs/development.md, section "Benches"."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest
from limits import Probe, make_probe
from machine import describe_machine
from measuring import Measure
from weights import WeightPool

from gemma_surgery._native import ext

ROOT = Path(__file__).parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gemma-surgery")
    group.addoption("--quick", action="store_true", help="only what `make bench-check` compares, few rounds")
    group.addoption("--original", type=Path, help="4-bit checkpoint of the 4B shape")
    group.addoption("--mobile", type=Path, help="its `mobile` form")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: left out by --quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    device = str(mx.default_device().type).rpartition(".")[2]
    machine_info.clear()
    machine_info.update(describe_machine(ROOT))
    machine_info.update(
        {
            "kernels": ext.default_isa() if device == "cpu" else "metal",
            "device": device,
            "mlx": version("mlx"),
            "blas": blas(),
            "quick": config.getoption("--quick"),
        }
    )


def blas() -> str:
    """Name the library that MLX's float32 products run in."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return "Accelerate"
    # NumPy brings an OpenBLAS of its own, whose names have a prefix: MLX does not call it.
    files = {Path(line.split()[-1]).name for line in maps.read_text().splitlines() if "blas" in line}
    files = {name for name in files if "scipy" not in name}
    known = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS"}
    return next((name for key, name in known.items() for file in files if key in file), "reference BLAS")


@pytest.fixture(scope="session")
def probe() -> Probe:
    return make_probe()


@pytest.fixture(scope="session")
def pool() -> WeightPool:
    return WeightPool()


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    return request.config.getoption("--quick")


@pytest.fixture
def measure(benchmark, probe: Probe, quick: bool) -> Measure:
    return Measure(benchmark, probe, quick)
