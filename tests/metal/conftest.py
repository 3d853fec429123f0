"""One compiled library per source and type, a summary line, and the reason where there is no usable clang."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import harness
import numpy as np
import pytest
from kernels import KERNELS, Kernels


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    clang, reason = harness.find_clang()
    if clang is None:
        pytest.skip(reason)
    return Kernels(tmp_path_factory.mktemp("metal"))


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def count_case() -> Callable[[str], None]:
    return lambda name: harness.counts.update([f"cases of {name}"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not harness.counts:
        return
    cases = {name: count for name, count in harness.counts.items() if name.startswith("cases of")}
    ours = sorted(harness.kernels_run & {kernel for names in KERNELS.values() for kernel in names})
    terminalreporter.write_line(
        f"metal: {len(ours)} kernels in {harness.counts['libraries']} compiled libraries,"
        f" {len(harness.instantiations)} specializations, {sum(cases.values())} cases against an oracle,"
        f" {harness.counts['dispatches']} dispatches under checks"
    )
