"""Several processes measure what one does, and none waits for one that is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrating import passages, profiled, samples_of
from safetensors.numpy import load_file

from gemma_surgery.calibration.ranks import Ranks, launched_ranks
from gemma_surgery.errors import SurgeryError

# For what takes seconds: a process that hangs is ended then, and the test fails.
PATIENCE_SECONDS = 120
GONE_SECONDS = 60
NUM_SAMPLES = 7
OPTIONS = ("-m", 90, "--hessian-of", "*.3.mlp.*", "--json")

pytestmark = pytest.mark.skipif(
    not mx.distributed.is_available("ring"), reason="this MLX has no ring backend for several processes"
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of different lengths; the first ranks get more of them than the last."""
    path = tmp_path_factory.mktemp("data") / "texts.jsonl"
    lines = [json.dumps({"prompt": each.prompt, "text": each.text}) for each in passages(NUM_SAMPLES)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def command(model: Path, output: Path, *arguments: object) -> list[str]:
    profile = [sys.executable, "-m", "gemma_surgery", "profile", str(model), "-o", str(output)]
    return [*profile, *map(str, arguments)]


def both(model: Path, folder: Path, *arguments: object) -> tuple[Path, list[str]]:
    """The profile that one process makes, and the command line for several to write `many`."""
    line = command(model, folder / "one", *arguments)
    subprocess.run(line, check=True, capture_output=True, timeout=PATIENCE_SECONDS)
    return folder / "one", command(model, folder / "many", *arguments)


def start_ranks(folder: Path, size: int, line: list[str]) -> list[subprocess.Popen[str]]:
    """One process per rank on free ports, as `mlx.launch` starts them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    hosts = [[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]
    for each in sockets:
        each.close()
    (folder / "hosts.json").write_text(json.dumps(hosts))
    return [
        subprocess.Popen(
            line,
            env={**os.environ, "MLX_HOSTFILE": str(folder / "hosts.json"), "MLX_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def finish(
    ranks: list[subprocess.Popen[str]], seconds: float = PATIENCE_SECONDS
) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        outputs = [rank.communicate(timeout=seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs, strict=True)]


def assert_same(got: Path, expected: Path) -> None:
    """Equal but for the rounding of float32 sums: one step of a packed correlation, 2e-6 of the largest."""
    theirs, ours = load_file(expected), load_file(got)
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        difference = np.abs(ours[name].astype(np.float64) - values).max()
        allowed = 1 if values.dtype == np.int16 else 2e-6 * np.abs(values).max()
        assert difference <= allowed, f"{name}: {difference:g}"


def test_two_ranks_of_mlx_launch_measure_what_one_process_does(
    dense: Path, texts: Path, pictures: Path, tmp_path: Path
) -> None:
    launch = Path(sys.executable).parent / "mlx.launch"
    if not launch.exists():
        pytest.skip("`mlx.launch` is not beside this Python")
    # Behind seven texts the first image is rank 1's and the second rank 0's.
    alone, line = both(dense, tmp_path, "--calibration", texts, "--images", pictures, *OPTIONS)
    start = [str(launch), "-n", "2", "--backend", "ring", "--"]
    done = subprocess.run(
        [*start, *line], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    documents = [json.loads(each) for each in done.stdout.splitlines() if each.startswith("{")]
    assert [(each["ranks"], each["samples"]) for each in documents] == [(2, NUM_SAMPLES + 2)], done.stderr
    assert_same(tmp_path / "many", alone)


def test_three_ranks_of_which_one_has_an_image_measure_what_one_process_does(
    dense: Path, texts: Path, pictures: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "0.png").symlink_to(pictures / "0.png")
    alone, line = both(dense, tmp_path, "--calibration", texts, "--images", shown, *OPTIONS)
    finished = finish(start_ranks(tmp_path, 3, line))
    assert [code for code, _, _ in finished] == [0, 0, 0], finished
    assert json.loads(finished[0][1].splitlines()[-1])["ranks"] == 3
    assert [out for _, out, _ in finished[1:]] == ["", ""]
    assert_same(tmp_path / "many", alone)


def test_more_ranks_than_samples_is_a_clear_error_on_each(dense: Path, texts: Path, tmp_path: Path) -> None:
    line = command(dense, tmp_path / "p", "--calibration", texts, "--samples", 1, "--quiet")
    for code, out, err in finish(start_ranks(tmp_path, 2, line)):
        assert (code, out) == (2, "")
        assert err.strip().endswith("need at least one sample per rank, got 1 for 2 ranks")
    assert not (tmp_path / "p").exists()


def test_a_killed_rank_ends_the_others_with_a_clear_error(dense: Path, tmp_path: Path) -> None:
    ranks = start_ranks(tmp_path, 3, command(dense, tmp_path / "p", "-m", 256))
    # Work is under way, and nine tenths of it are left.
    assert ranks[0].stderr is not None
    assert "profiling" in ranks[0].stderr.readline()
    ranks[2].send_signal(signal.SIGKILL)
    # Rank 0 is connected to the one that died, rank 1 to rank 0.
    for code, _, err in finish(ranks[:2], GONE_SECONDS):
        assert code == 1
        assert "[ranks] need all ranks to the end, but rank" in err and "is gone" in err
        assert "hint: repeat the command with `--resume`" in err
    ranks[2].wait()
    assert not (tmp_path / "p").exists()


def test_ranks_with_other_data_are_refused(dense: Path, tmp_path: Path, monkeypatch) -> None:
    numbers: list[int] = []
    monkeypatch.setattr(Ranks, "agree", lambda self, number: numbers.append(number))
    for count in (1, 2):
        with pytest.raises(SurgeryError, match="need the same checkpoint, data and options on every rank"):
            profiled(dense, samples_of(dense, count), tmp_path / "p")
    assert numbers[0] != numbers[1] and list(tmp_path.iterdir()) == []


def test_a_rank_that_is_told_of_no_others_is_a_clear_error(monkeypatch) -> None:
    for name in [name for name in os.environ if name.startswith("MLX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLX_RANK", "0")
    with pytest.raises(SurgeryError, match="cannot meet the other ranks: "):
        launched_ranks()
