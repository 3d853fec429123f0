"""A run that is killed or meets a full disk: the source untouched, the target absent, the resume exact."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from compressing import SCALED, folder_hashes, plan_recipe, read_json

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.executor import execute

# Kills itself when the n-th tensor is recorded: after its bytes are written, before the run is complete.
KILLED = """
import os, signal, sys
from pathlib import Path
from compressing import plan_recipe
from gemma_surgery.checkpoint.writing import OutputFolder
from gemma_surgery.surgery.executor import execute
source, target, moment = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0
record = OutputFolder.record
def counted(self, unit, entry):
    global calls
    calls += 1
    if calls == moment:
        os.kill(os.getpid(), signal.SIGKILL)
    record(self, unit, entry)
OutputFolder.record = counted
execute(plan_recipe(source), target, threads=2, resume="resume" in sys.argv)
"""


def run_killed(source: Path, target: Path, moment: int, *extra: str) -> None:
    program = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(target), str(moment), *extra],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        check=False,
    )
    assert program.returncode == -signal.SIGKILL, program.stderr.decode()


@pytest.fixture(scope="module")
def reference(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    target = tmp_path_factory.mktemp("reference") / "output"
    execute(plan_recipe(tiny), target)
    return folder_hashes(target)


@pytest.mark.parametrize("moment", [1, 2, 40, 97])
def test_a_killed_run_resumes_to_the_same_bytes(
    tiny: Path, tmp_path: Path, reference: dict[str, str], moment: int
) -> None:
    source, target = folder_hashes(tiny), tmp_path / "output"
    run_killed(tiny, target, moment)
    assert not target.exists()
    run_killed(tiny, target, 3, "resume")
    assert not target.exists()
    outcome = execute(plan_recipe(tiny), target, resume=True)
    assert outcome.resumed_bytes > 0 or moment < 3
    assert folder_hashes(target) == reference
    assert folder_hashes(tiny) == source
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_damage_to_the_leftovers_is_noticed_on_resume(
    tiny: Path, tmp_path: Path, reference: dict[str, str]
) -> None:
    target = tmp_path / "output"
    run_killed(tiny, target, 60)
    partial = tmp_path / ".output.partial" / "language_model.safetensors"
    data = bytearray(partial.read_bytes())
    data[-200_000:-100_000] = bytes(100_000)
    partial.write_bytes(data)
    execute(plan_recipe(tiny), target, resume=True)
    assert folder_hashes(target) == reference


def test_another_recipe_does_not_continue_a_run(tiny: Path, tmp_path: Path) -> None:
    run_killed(tiny, tmp_path / "output", 5)
    other = plan_recipe(tiny, "lite", SCALED[:2])
    with pytest.raises(SurgeryError):
        execute(other, tmp_path / "output", resume=True)


def test_a_source_that_was_written_to_is_not_continued(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    run_killed(source, tmp_path / "output", 5)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(SurgeryError):
        execute(plan_recipe(source), tmp_path / "output", resume=True)


def test_a_full_disk_gives_one_error_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with pytest.raises(SurgeryError) as caught:
            execute(plan_recipe(tiny), small / "output")
        assert len(str(caught.value).splitlines()) <= 2
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_source_that_shrinks_gives_one_error(tiny: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    plan = plan_recipe(source)
    with (source / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    with pytest.raises(SurgeryError, match=r"model\.safetensors"):
        execute(plan, tmp_path / "output")
    assert not (tmp_path / "output").exists()


def test_corpus_and_file_sets_reach_the_output(tiny: Path, tmp_path: Path) -> None:
    from compressing import compress_steps

    text = tmp_path / "corpus.txt"
    text.write_text("Der schnelle braune Fuchs springt über den faulen Hund\n" * 3, "utf-8")
    toml = '[[steps]]\nstep = "prune_vocabulary"\nkeep = ["ascii", "typographic"]\n'
    plain = compress_steps(tiny, tmp_path, toml)
    rows = read_json(plain / "config.json")["vocab_pruning"]["compact_vocab_size"]
    larger = compress_steps(tiny, tmp_path, f'{toml}corpus = ["{text}"]\nmin_count = 3')
    assert read_json(larger / "config.json")["vocab_pruning"]["compact_vocab_size"] > rows
    from tokenizers import Tokenizer

    original, pruned = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (tiny, larger))
    sentence = "Der Fuchs springt über den Hund"
    assert original.encode(sentence).ids == pruned.encode(sentence).ids
