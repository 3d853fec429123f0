"""One profile for a whole recipe: where it is looked for, who gets it, and what the manifest keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from calibrated import made_up
from compressing import SCALED, read_json

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli import compress, plan
from gemma_surgery.errors import SurgeryError
from gemma_surgery.recipes.recipe import Recipe, load_recipe, make_plan

STEPS = """
[[steps]]
step = "drop_layers"
auto = 1

[[steps]]
step = "prune_neurons"
protect_first = 5
"""


def profiles_of(source: Path, recipe: Recipe) -> list[str | None]:
    return [step.profile_sha256 for step in make_plan(open_checkpoint(source), recipe).steps]


def test_a_profile_lies_relative_to_the_recipe_and_reaches_every_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    made_up(hessians=False).write(tmp_path / "recipes" / "a.profile", tiny)
    path = tmp_path / "recipes" / "mine.toml"
    path.write_text(f'profile = "a.profile"\n{STEPS}', "utf-8")
    monkeypatch.chdir(tmp_path)
    for name in (path, Path("recipes/mine.toml")):
        recipe = load_recipe(str(name))
        first, second = profiles_of(tiny, recipe)
        assert first == second is not None
        # As it was written: the same bytes of the manifest wherever the folder lies.
        assert recipe.to_json()["profile"] == "a.profile"
        assert Recipe.from_json(recipe.to_json()) == Recipe("mine", "", recipe.steps, "a.profile")


def test_a_step_keeps_the_profile_that_it_names(tiny: Path, tmp_path: Path) -> None:
    made_up(hessians=False).write(tmp_path / "a.profile", tiny)
    made_up(seed=1, hessians=False).write(tmp_path / "b.profile", tiny)
    path = tmp_path / "mine.toml"
    path.write_text(f'profile = "a.profile"\n{STEPS}profile = "b.profile"', "utf-8")
    first, second = profiles_of(tiny, load_recipe(str(path)))
    assert None not in (first, second) and first != second


def test_the_command_line_takes_the_place_of_the_recipes_profile(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    made_up(hessians=False).write(tmp_path / "here.profile", tiny)
    path = tmp_path / "recipes" / "mine.toml"
    path.write_text(f'profile = "nowhere.profile"\n{STEPS}', "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SurgeryError, match=r"nowhere\.profile"):
        profiles_of(tiny, load_recipe(str(path)))
    assert None not in profiles_of(tiny, load_recipe(str(path), profile=Path("here.profile")))


def test_compress_with_a_profile_records_it(tiny: Path, tmp_path: Path) -> None:
    path = made_up(hessians=False).write(tmp_path / "a.profile", tiny)
    compress.command(str(tiny), tmp_path / "out", "mobile", list(SCALED), path, quiet=True, json=True)
    plan.command(str(tiny), "mobile", list(SCALED), path, write=tmp_path / "plan.json", json=True)
    manifest = read_json(tmp_path / "out" / "surgery.json")
    assert manifest["recipe"]["profile"] == str(path)
    assert manifest["plan_sha256"] == read_json(tmp_path / "plan.json")["plan_sha256"]
    calibrated = {step["step"] for step in manifest["steps"] if "profile_sha256" in step}
    assert calibrated == {"quantize", "prune_neurons"}


def test_mobile_needs_no_profile(tiny: Path) -> None:
    assert profiles_of(tiny, load_recipe("mobile", SCALED)) == [None] * 8


def test_a_profile_that_no_step_takes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('profile = "a.profile"\n[[steps]]\nstep = "tie_head"', "utf-8")
    with pytest.raises(SurgeryError, match=r"in `mine\.toml` that takes the profile `a\.profile`"):
        load_recipe(str(path))


def test_a_profile_is_a_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"profile = 3\n{STEPS}", "utf-8")
    with pytest.raises(SurgeryError, match="need a text, got 3 for `profile`"):
        load_recipe(str(path))


def test_a_profile_that_is_not_there_is_one_sentence(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'profile = "nowhere.profile"\n{STEPS}', "utf-8")
    with pytest.raises(SurgeryError, match=r"nowhere\.profile") as caught:
        make_plan(open_checkpoint(tiny), load_recipe(str(path)))
    assert "profile" in str(caught.value)
