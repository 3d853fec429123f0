"""The C++ without Python and MLX: its tests and fuzzers under sanitizers, and arm64 under an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# CMake comes with the environment, which need not be activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists()
    or not all(shutil.which(tool, path=PATH) for tool in ("cmake", "c++")),
    reason="needs a checkout, cmake and a C++ compiler",
)


def run(*command: str) -> str:
    environment = {**os.environ, "PATH": PATH}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("target", "rounds", "expected"),
    [("gemma_surgery_cpu_test", "1000", "hash: "), ("gemma_surgery_tokenizer_test", "2000", "rounds: 2000")],
)
def test_fuzzing_under_sanitizers_finds_nothing(target: str, rounds: str, expected: str) -> None:
    folder = ROOT / "build" / "sanitized"
    options = ["-DGEMMA_SURGERY_EXTENSION=OFF", "-DGEMMA_SURGERY_CPU_TESTS=ON", "-DGEMMA_SURGERY_SANITIZE=ON"]
    run("cmake", "-S", ".", "-B", str(folder), *options)
    run("cmake", "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1))
    assert expected in run(str(folder / target), rounds, "42")


def test_arm64_gives_the_same_bits() -> None:
    output = run("bash", "tools/check_arm64.sh", "40")
    if "skipped:" in output:
        pytest.skip(output.strip())
    assert "ok: the same bits on both" in output
