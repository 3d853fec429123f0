"""The command line as a program sees it: exit codes, JSON, one-line errors, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from compressing import SCALED, folder_hashes

SETTINGS = [argument for override in SCALED for argument in ("--set", override)]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gemma_surgery", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )


def last_json(result: subprocess.CompletedProcess[str]) -> dict:
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_plan_needs_no_output_and_prints_stable_json(tiny: Path) -> None:
    plan = last_json(run("plan", tiny, "--recipe", "mobile", *SETTINGS, "--json"))
    assert {"source_bytes", "output_bytes", "plan_sha256", "steps"} <= set(plan)
    assert {"step", "saved_bytes", "lossless"} <= set(plan["steps"][0])
    saved = sum(step["saved_bytes"] - step["added_bytes"] for step in plan["steps"])
    assert plan["source_bytes"] - saved == plan["output_bytes"]


def test_compress_verify_and_inspect_from_the_shell(tiny: Path, tmp_path: Path) -> None:
    before = folder_hashes(tiny)
    target = tmp_path / "out"
    result = last_json(
        run("compress", tiny, "-o", target, "--recipe", "mobile", *SETTINGS, "--no-measure", "--json")
    )
    planned = last_json(run("plan", tiny, "--recipe", "mobile", *SETTINGS, "--json"))
    assert {key: result[key] for key in planned} == planned
    for key in ("seconds", "read_bytes", "written_bytes", "peak_anonymous_bytes"):
        assert result[key] > 0
    weights = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    assert weights < result["written_bytes"] < weights + 10_000_000

    verdict = last_json(run("verify", target, "--against", tiny, "--json"))
    assert verdict == {"ok": True, "tensors": 260, "problems": [], "notes": []}
    anatomy = last_json(run("inspect", target, "--json"))
    assert anatomy["total_bytes"] == planned["output_bytes"]
    assert sum(part["size_bytes"] for part in anatomy["components"]) == anatomy["total_bytes"]
    assert anatomy["oddities"] == []
    assert folder_hashes(tiny) == before


def test_inspect_names_the_duplicate_head(tiny: Path) -> None:
    result = run("inspect", tiny)
    assert result.returncode == 0
    assert "lm_head.weight` is stored beside the tied embedding" in result.stdout


def test_stages_write_the_same_as_the_recipe_cut_short(tiny: Path, tmp_path: Path) -> None:
    result = run(
        "compress", tiny, "-o", tmp_path / "out", "--recipe", "mobile", *SETTINGS, "--no-measure", "--stages"
    )
    assert result.returncode == 0, result.stderr
    names = sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
    assert names == [
        "out",
        "out.1-quantize",
        "out.2-tie_head",
        "out.3-prune_vocabulary",
        "out.4-pad_vision_mlp",
        "out.5-drop_layers",
        "out.6-reduce_resolution",
        "out.7-prune_neurons",
    ]
    for name in names:
        assert last_json(run("verify", tmp_path / name, "--against", tiny, "--json"))["ok"]


def test_verify_finds_a_flipped_bit_and_exits_with_1(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("compress", tiny, "-o", target, *SETTINGS, "--no-measure").returncode == 0
    path = target / "vision_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)
    result = run("verify", target, "--json")
    assert result.returncode == 1
    verdict = json.loads(result.stdout.splitlines()[-1])
    assert not verdict["ok"] and len(verdict["problems"]) == 1
    assert "does not have the recorded sha256" in verdict["problems"][0]


def test_verify_finds_a_config_that_disagrees(tiny: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("compress", tiny, "-o", target, *SETTINGS, "--no-measure").returncode == 0
    config = json.loads((target / "config.json").read_text())
    config["text_config"]["mm_tokens_per_image"] = 16
    config["vision_config"]["image_size"] = 224
    (target / "config.json").write_text(json.dumps(config))
    result = run("verify", target, "--json")
    problems = " ".join(json.loads(result.stdout.splitlines()[-1])["problems"])
    assert result.returncode == 1
    for part in ("position_embedding", "16 in `text_config`", "preprocessor_config.json` resizes"):
        assert part in problems


def test_verify_against_another_checkpoint_says_so(tiny: Path, tiny_dense: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert run("compress", tiny, "-o", target, *SETTINGS, "--no-measure").returncode == 0
    result = run("verify", target, "--against", tiny_dense)
    assert result.returncode == 1
    assert "made of another checkpoint" in result.stdout


ERRORS: dict[str, tuple[list[str], str]] = {
    "no such model": (["plan", "nowhere"], "nowhere"),
    "no such recipe": (["plan", "TINY", "--recipe", "nope"], "need a preset"),
    "existing target": (["compress", "TINY", "-o", "TAKEN", *SETTINGS, "--no-measure"], "exists"),
    "target is the source": (
        ["compress", "TINY", "-o", "TINY", *SETTINGS, "--no-measure"],
        "apart from the source",
    ),
    "target inside the source": (
        ["compress", "TINY", "-o", "TINY/out", *SETTINGS, "--no-measure"],
        "outside the source",
    ),
    "a step that does not fit": (["plan", "TINY", "--set", "drop_layers.last=7"], "need at least 6"),
    "verify something else": (["verify", "TAKEN"], "TAKEN"),
    "an unknown shape": (["synth", "gemma-3-5b", "-o", "new"], "need a shape like"),
    "a tokenizer that is not there": (
        ["synth", "gemma-3-270m-it", "-o", "new", "--tokenizer", "TAKEN"],
        "need a `tokenizer.json`",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_with_exit_code_2(tiny: Path, tmp_path: Path, case: str) -> None:
    arguments, message = ERRORS[case]
    (tmp_path / "TAKEN").mkdir()
    (tmp_path / "TAKEN" / "file").touch()
    result = run(*[argument.replace("TINY", str(tiny)) for argument in arguments], cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("error: [")
    assert len(result.stderr.splitlines()) <= 4
    assert not (tmp_path / "new").exists()


def test_a_wrong_option_exits_with_2(tiny: Path) -> None:
    assert run("plan", tiny, "--fly").returncode == 2


def test_doctor_and_version() -> None:
    verdict = last_json(run("doctor", "--json"))
    assert verdict["ok"] and any(check["name"] == "kernels, portable" for check in verdict["checks"])
    assert run("--version").stdout.startswith("gemma-surgery 0.")


def test_demo_proves_what_it_shows() -> None:
    result = run("demo", "--scenes", "2", "--tasks", "2")
    assert result.returncode == 0, result.stderr
    assert "tensors derived again from the original" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    assert len(result.stdout.splitlines()) <= 42
    # The answers of all three checkpoints are read off the screen, and right.
    wanted = re.search(r"an image of: (There is .*)", result.stdout)
    assert wanted is not None
    for name in ("original", "4-bit", "mobile"):
        assert re.search(rf"{name} +{re.escape(wanted[1])}", result.stdout), result.stdout


def test_demo_counts_right_answers_of_all_three_checkpoints(tmp_path: Path) -> None:
    report = last_json(run("demo", "-o", tmp_path / "kept", "--scenes", "3", "--tasks", "4", "--json"))
    names = [one["name"] for one in report["checkpoints"]]
    assert names == ["original, bf16", "4-bit", "mobile"]
    sizes = [one["size_bytes"] for one in report["checkpoints"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == report["output_bytes"]
    assert all(0 <= one[key] <= 1 for one in report["checkpoints"] for key in ("facts", "tasks"))
    assert report["verify"]["ok"]
    assert (tmp_path / "kept" / "surgery.json").is_file()


def test_an_unfinished_run_resumes_from_the_shell(tiny: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    assert run("compress", tiny, "-o", first, *SETTINGS, "--no-measure", "--resume").returncode == 0
    result = run("compress", tiny, "-o", first, *SETTINGS, "--no-measure", "--resume")
    assert result.returncode == 2 and "exists" in result.stderr
    assert run("compress", tiny, "-o", first, *SETTINGS, "--no-measure", "--overwrite").returncode == 0
