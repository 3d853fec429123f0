"""The C++ without Python and MLX: its tests and fuzzers under sanitizers, and arm64 under an emulator."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Against tests that wait for each other for ever.
MOST_SECONDS = 900
# CMake comes with the environment, which need not be activated.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
pytestmark = [
    pytest.mark.native_build,
    pytest.mark.skipif(
        not (ROOT / "CMakeLists.txt").exists()
        or not all(shutil.which(tool, path=PATH) for tool in ("cmake", "c++")),
        reason="needs a checkout, cmake and a C++ compiler",
    ),
]


def run(*command: str, **variables: str) -> str:
    environment = {**os.environ, "PATH": PATH, **variables}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=MOST_SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@cache
def configured(sanitizers: str) -> Path:
    """A build folder of its own for each choice of sanitizers, or a skip where the compiler lacks them."""
    folder = ROOT / "build" / ("sanitized-" + sanitizers.replace(",", "-"))
    folder.mkdir(parents=True, exist_ok=True)
    probe = ["c++", f"-fsanitize={sanitizers}", "-x", "c++", "-", "-o", str(folder / "probe")]
    done = subprocess.run(
        probe,
        input="int main() {}",
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": PATH},
    )
    if done.returncode != 0:
        pytest.skip(f"needs a C++ compiler with -fsanitize={sanitizers}")
    options = ["-DGEMMA_SURGERY_EXTENSION=OFF", "-DGEMMA_SURGERY_CPU_TESTS=ON"]
    generator = ["-G", "Ninja"] if shutil.which("ninja", path=PATH) else []
    run("cmake", "-S", ".", "-B", str(folder), *generator, *options, f"-DGEMMA_SURGERY_SANITIZE={sanitizers}")
    return folder


def built(sanitizers: str, target: str) -> str:
    folder = configured(sanitizers)
    run("cmake", "--build", str(folder), "--target", target, "--parallel", str(os.cpu_count() or 1))
    return str(folder / target)


@cache
def fixed_addresses() -> list[str]:
    """ThreadSanitizer has fixed places in memory, where newer kernels put other things at random."""
    command = ["setarch", platform.machine(), "-R"]
    allowed = shutil.which("setarch") and subprocess.run([*command, "true"], check=False).returncode == 0
    return command if allowed else []


@pytest.mark.parametrize(
    ("target", "rounds", "expected"),
    [
        ("gemma_surgery_cpu_test", "1000", "hash: "),
        ("gemma_surgery_attention_test", "60", "ok: 60 rounds"),
        ("gemma_surgery_float_test", "60", "ok: 60 rounds"),
        ("gemma_surgery_product_test", "40", "ok: 40 rounds"),
        ("gemma_surgery_solve_test", "10", "ok: 10 rounds"),
        ("gemma_surgery_tokenizer_test", "2000", "rounds: 2000"),
    ],
)
def test_fuzzing_under_sanitizers_finds_nothing(target: str, rounds: str, expected: str) -> None:
    assert expected in run(built("address,undefined", target), rounds, "42")


@pytest.mark.parametrize(
    ("target", "rounds"),
    [
        ("gemma_surgery_attention_test", "10"),
        ("gemma_surgery_float_test", "10"),
        ("gemma_surgery_product_test", "10"),
        ("gemma_surgery_solve_test", "4"),
    ],
)
def test_threads_do_not_race(target: str, rounds: str) -> None:
    program = built("thread", target)
    assert f"ok: {rounds} rounds" in run(
        *fixed_addresses(), program, rounds, "42", TSAN_OPTIONS="halt_on_error=1"
    )


def test_arm64_gives_the_same_bits() -> None:
    # An emulator takes ten times as long: fewer rounds than on the host.
    output = run("bash", "tools/check_arm64.sh", "20")
    if "skipped:" in output:
        pytest.skip(output.strip())
    assert "ok: the same bits on both" in output
