"""Pins that stand in two places must be the same pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_pre_commit_runs_the_linters_that_the_lint_extra_pins():
    pins = dict(
        pin.split("==") for pin in PYPROJECT["project"]["optional-dependencies"]["lint"] if "==" in pin
    )
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for repository, package in (("ruff-pre-commit", "ruff"), ("mirrors-clang-format", "clang-format")):
        match = re.search(rf"{repository}\n\s+rev: v(\S+)", hooks)
        assert match is not None
        assert match[1] == pins[package]


def test_the_extension_is_built_within_the_mlx_bounds_that_it_runs_with():
    def mlx(requirements):
        return {line.replace(" ", "") for line in requirements if line.startswith("mlx")}

    built = mlx(PYPROJECT["build-system"]["requires"])
    assert len(built) == 2
    assert built == mlx(PYPROJECT["project"]["dependencies"])
    assert all("<" in requirement for requirement in built)


def test_nanobind_is_pinned_exactly():
    pins = [line for line in PYPROJECT["build-system"]["requires"] if line.startswith("nanobind")]
    assert re.fullmatch(r"nanobind==\d+\.\d+\.\d+", pins[0])


def test_requirements_lists_build_run_time_and_extras_once(run_script):
    done = run_script("tools/requirements.py", "test", "lint")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert len(lines) == len(set(lines))
    expected = PYPROJECT["build-system"]["requires"] + PYPROJECT["project"]["dependencies"]
    for extra in ("test", "lint"):
        expected = expected + PYPROJECT["project"]["optional-dependencies"][extra]
    assert set(expected) <= set(lines)


def test_requirements_refuses_an_unknown_extra(run_script):
    done = run_script("tools/requirements.py", "tset")
    assert done.returncode == 1
    assert "got ['tset']" in done.stderr


def test_no_script_under_pipefail_pipes_into_a_reader_that_quits_early():
    # `make --version | head -n 1` ends with 141 whenever make is still writing when head leaves.
    for script in (ROOT / ".ci/run", *(ROOT / "tools").glob("*.sh")):
        text = script.read_text()
        if "pipefail" in text:
            assert not re.search(r"\|\s*(head\b|grep -q|sed (-n )?\d*q)", text), script


def test_the_gate_runs_targets_that_exist():
    stages = re.search(r"^for target in (.+); do$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    targets = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert stages is not None
    assert targets is not None
    assert set(stages[1].split()) <= set(targets[1].split())


def test_what_make_test_leaves_out_is_a_stage_of_the_gate_and_of_the_workflow():
    makefile = (ROOT / "Makefile").read_text()
    assert "pytest -m 'not native_build'" in makefile
    assert "pytest tests/native -m native_build" in makefile
    assert " test-native " in (ROOT / ".ci/run").read_text()
    assert "make test-native" in (ROOT / ".github/workflows/ci.yml").read_text()


def test_the_arm64_check_says_what_it_lacks():
    done = subprocess.run(
        ["bash", str(ROOT / "tools/check_arm64.sh")],
        env={**os.environ, "ARM64_CXX": "no-such-compiler"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "skipped: `no-such-compiler` is not installed\n")
