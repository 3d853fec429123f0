from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A compress that obeys the contract: unit by unit into a hidden sibling, renamed at the end. FAULT breaks it.
FAKE = """#!{python}
import json, os, shutil, sys, time
from pathlib import Path

FAULT = {fault!r}
arguments = sys.argv[1:]
assert arguments[0] == "compress" and "--json" in arguments and "--recipe" in arguments, arguments
source = Path(arguments[1])
target = Path(arguments[arguments.index("-o") + 1])
partial = target.with_name(f".{{target.name}}.partial")
if target.exists():
    if "--overwrite" not in arguments:
        print("[compress] target exists", file=sys.stderr)
        sys.exit(2)
    shutil.rmtree(target)
if FAULT == "half target":
    partial = target
if partial.exists() and "--resume" not in arguments:
    shutil.rmtree(partial)
done = set(os.listdir(partial)) if partial.exists() else set()
if FAULT == "refuses to resume" and done:
    print("[compress] nothing can be resumed", file=sys.stderr)
    sys.exit(1)
partial.mkdir(exist_ok=True)
if FAULT == "writes to the source":
    (source / "config.json").write_text("changed")
written = 0
for unit in range(8):
    name = f"unit-{{unit}}"
    if name in done and FAULT != "torn":
        continue
    data = bytes([unit]) * 1000
    if FAULT == "torn" and done:
        data = bytes([unit + 1]) * 1000
    (partial / ".unit").write_bytes(data)
    os.replace(partial / ".unit", partial / name)
    written += len(data)
    # Much longer than starting Python takes, or kills would come before the first unit.
    time.sleep(0.06)
(partial / ".unit").unlink(missing_ok=True)
if partial != target:
    os.replace(partial, target)
if FAULT == "leaves a file":
    target.with_name("left").touch()
print("progress", file=sys.stderr)
print(json.dumps({{
    "source_bytes": 9000, "output_bytes": 8000, "plan_sha256": "0" * 64,
    "steps": [{{"step": "tie_head", "saved_bytes": 1000, "lossless": True}}], "seconds": 0.08,
    "read_bytes": 9000, "written_bytes": written, "peak_anonymous_bytes": 1000000,
}}))
"""


@pytest.fixture
def fake_surgery(tmp_path: Path) -> Callable[[str], Path]:
    """Returns a function that writes an executable like `gemma-surgery`, with the named fault."""

    def write(fault: str = "") -> Path:
        path = tmp_path / "fake-surgery"
        path.write_text(FAKE.format(python=sys.executable, fault=fault))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint from outside."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}" + bytes(8990))
    return folder


@pytest.fixture
def run_script() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Returns a function that runs a script of the repository, as a user would."""

    def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )

    return run
