"""`compress` and `search` measure the checkpoint themselves where a recipe asks for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from compressing import read_json

from gemma_surgery.calibration import passages
from gemma_surgery.calibration.passages import Passage
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import SCALED, demo_model_path
from gemma_surgery.demo_model.task_passages import task_passages
from gemma_surgery.recipes.recipe import load_recipe, make_plan

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS = [argument for override in SCALED for argument in ("--set", override)]
MODEL = demo_model_path("4bit")


@pytest.fixture(autouse=True)
def few_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    def few() -> tuple[Passage, ...]:
        return tuple(task_passages("train", 6, seed=0))

    monkeypatch.setattr(passages, "calibration_passages", few)


def scored_by(output: Path) -> str:
    steps = {step["step"]: step for step in read_json(output / "surgery.json")["steps"]}
    return steps["prune_neurons"]["notes"][0]


def test_mobile_measures_first_and_what_it_made_can_be_derived_again(cli, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "out"
    assert cli("compress", MODEL, "-o", target, *SETTINGS, "--quiet").code == 0
    assert "measured fluctuation" in scored_by(target)
    assert read_json(target / "surgery.json")["recipe"]["profile"] == f"{target}.profile"
    verdict = cli("verify", target, "--against", MODEL, "--quiet", "--json").document
    assert verdict["ok"] and not verdict["notes"]


def test_the_profile_beside_an_output_is_found_from_anywhere(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("compress", MODEL, "-o", "out", *SETTINGS, "--quiet").code == 0
    (tmp_path / "moved").mkdir()
    monkeypatch.chdir("/")
    assert cli("verify", tmp_path / "out", "--against", MODEL, "--quiet", "--json").document["notes"] == []
    (tmp_path / "out").rename(tmp_path / "moved/out")
    notes = cli("verify", tmp_path / "moved/out", "--against", MODEL, "--quiet", "--json").document["notes"]
    assert "needs the profile `out.profile`" in notes[0]


def test_a_folder_that_cannot_be_made_is_one_sentence(cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = cli("compress", MODEL, "-o", tmp_path / "file" / "out", *SETTINGS, "--quiet")
    assert result.code == 2 and "cannot create" in result.stderr and "Traceback" not in result.stderr


def test_without_measuring_neurons_are_scored_by_weights(cli, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert cli("compress", MODEL, "-o", target, *SETTINGS, "--no-measure", "--quiet").code == 0
    assert "weight norms" in scored_by(target)
    assert not (tmp_path / "out.profile").exists()


def test_another_file_of_the_profiles_name_is_left_alone(cli, tmp_path: Path) -> None:
    mine = tmp_path / "out.profile"
    mine.write_text("mine")
    result = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--quiet")
    assert result.code == 2 and "--no-measure" in result.stderr
    assert mine.read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("setting", ["drop_layers.last=7", "prune_neurons.max_ratio=2"])
def test_nothing_is_measured_for_a_recipe_that_does_not_fit(cli, tmp_path: Path, setting: str) -> None:
    result = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--set", setting, "--quiet")
    assert result.code == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_measured_for_an_output_that_exists(cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--quiet")
    assert result.code == 2 and "exists" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_measured_is_used_again_and_measured_anew_to_overwrite(cli, tmp_path: Path) -> None:
    target, profile = tmp_path / "out", tmp_path / "out.profile"
    run = ("compress", MODEL, "-o", target, *SETTINGS, "--quiet")
    assert "measuring" in cli(*run).stderr
    before = profile.stat().st_mtime_ns
    target.rename(tmp_path / "elsewhere")
    again = cli(*run)
    assert again.code == 0 and "measuring" not in again.stderr and "using" in again.stderr
    assert profile.stat().st_mtime_ns == before
    assert "measuring" in cli(*run, "--overwrite").stderr
    assert profile.stat().st_mtime_ns > before


@pytest.mark.parametrize("flags", [(), ("--overwrite",), ("--resume",)])
def test_a_profile_of_somebodys_own_is_never_replaced(cli, tmp_path: Path, flags: tuple[str, ...]) -> None:
    texts, mine = tmp_path / "mine.txt", tmp_path / "out.profile"
    texts.write_text("A text of my own, which nobody else has.")
    assert cli("profile", MODEL, "-o", mine, "--calibration", texts, "--quiet").code == 0
    before = mine.read_bytes()
    result = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--quiet", *flags)
    assert result.code == 2 and "one of other data" in result.stderr and "--profile" in result.stderr
    assert mine.read_bytes() == before and not (tmp_path / "out").exists()


def test_a_profile_of_another_checkpoint_is_replaced_only_to_overwrite(cli, tmp_path: Path) -> None:
    target, other = tmp_path / "out", demo_model_path("bf16")
    assert cli("compress", other, "-o", target, *SETTINGS, "--quiet").code == 0
    run = ("compress", MODEL, "-o", target, *SETTINGS, "--quiet")
    assert cli(*run, "--overwrite").code == 0
    target.rename(tmp_path / "elsewhere")
    result = cli("compress", other, "-o", target, *SETTINGS, "--quiet")
    assert result.code == 2 and "one of another checkpoint" in result.stderr
    assert "replace it with `--overwrite`" in result.stderr and "use it" not in result.stderr


@pytest.mark.parametrize(
    "setting", ["scores=wifv", "scores=activation", "compensation=bias", "structure=global"]
)
def test_settings_that_need_what_is_measured_are_met_by_measuring(cli, tmp_path: Path, setting: str) -> None:
    run = ("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--set", f"prune_neurons.{setting}")
    result = cli(*run, "--quiet")
    assert result.code == 0, result.stderr


@pytest.mark.parametrize("guard", [("0.05",), ("kl=1", "--guard-texts", "nowhere.txt")])
def test_a_guard_that_cannot_be_read_ends_before_anything_is_measured(
    cli, tmp_path: Path, guard: tuple[str, ...]
) -> None:
    result = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--quiet", "--guard", *guard)
    assert result.code == 2 and "measuring" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_can_be_the_output_from_within(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    result = cli("compress", MODEL, "-o", ".", *SETTINGS, "--overwrite", "--quiet")
    assert result.code == 0, result.stderr
    assert (tmp_path / "out.profile").is_file() and (tmp_path / "out/surgery.json").is_file()
    monkeypatch.chdir(tmp_path / "out")
    assert cli("verify", ".", "--against", MODEL, "--quiet", "--json").document["notes"] == []


def test_demo_makes_the_folder_that_its_output_lies_in(cli, tmp_path: Path) -> None:
    result = cli("demo", "-o", tmp_path / "new/folder/x", "--scenes", 1, "--tasks", 1, "--quiet")
    assert result.code == 0, result.stderr
    assert (tmp_path / "new/folder/x.profile").is_file()


def test_the_time_before_the_pass_is_told(cli, tmp_path: Path) -> None:
    document = cli("compress", MODEL, "-o", tmp_path / "out", *SETTINGS, "--quiet", "--json").document
    assert set(document["seconds_before"]) == {"measuring"} and document["seconds_before"]["measuring"] > 0


def test_a_searched_recipe_finds_its_profile_wherever_it_was_written(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    found = cli(
        "search", MODEL, "-o", "recipes/best.toml", *SETTINGS, "--max-kl", "5", "--samples", "2",
        "--max-tokens", "96", "--rounds", "0", "--quiet",
    )  # fmt: skip
    assert found.code == 0, found.stderr
    assert tomllib.loads((tmp_path / "recipes/best.toml").read_text())["profile"] == "best.toml.profile"
    monkeypatch.chdir(tmp_path / "recipes")
    used = make_plan(open_checkpoint(MODEL), load_recipe("best.toml")).steps
    assert any(step.profile_sha256 for step in used)


def test_whether_to_measure_is_true_or_false(cli, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('measure = "yes"\n[[steps]]\nstep = "tie_head"\n')
    result = cli("plan", MODEL, "--recipe", path)
    assert result.code == 2 and "need true or false, got 'yes' for `measure`" in result.stderr
