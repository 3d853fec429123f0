"""csrc/tokenizer without Python: its C++ fuzzer under sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "CMakeLists.txt").exists() or shutil.which("cmake") is None or shutil.which("c++") is None,
    reason="needs a checkout, cmake and a C++ compiler",
)


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_fuzzing_under_sanitizers_finds_nothing() -> None:
    folder = ROOT / "build" / "tokenizer-asan"
    options = ["-DGEMMA_SURGERY_EXTENSION=OFF", "-DGEMMA_SURGERY_CPU_TESTS=ON", "-DGEMMA_SURGERY_SANITIZE=ON"]
    target = "gemma_surgery_tokenizer_test"
    run("cmake", "-S", ".", "-B", str(folder), *options)
    run("cmake", "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1))
    output = run(str(folder / target), "2000", "42")
    assert output.startswith("rounds: 2000")
