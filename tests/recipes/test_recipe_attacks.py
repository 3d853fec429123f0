"""Malformed recipes: each with its own sentence, all of a file's problems together, before any weight."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_surgery.errors import SurgeryError, SurgeryErrors
from gemma_surgery.recipes.recipe import Recipe, load_recipe, preset_names

STEP = '[[steps]]\nstep = "drop_layers"\n'
ATTACKS = {
    "not TOML": ("steps = [", "is not valid TOML"),
    "empty": ("", "need at least one `[[steps]]` table, got none"),
    "steps is a number": ("steps = 3", "need at least one `[[steps]]` table"),
    "a step is a number": ("steps = [3]", "need a table, got 3 as step 1"),
    "no step name": ("[[steps]]\nlast = 3", "unknown `step = None`"),
    "misspelt step": ('[[steps]]\nstep = "drop_layer"', "did you mean `drop_layers`?"),
    "step name of another type": ("[[steps]]\nstep = 7", "unknown `step = 7`"),
    "unknown file key": (f'{STEP}\n[author]\nname = "x"', "unknown key `author`"),
    "description of another type": (f"description = 3\n{STEP}", "need a text, got 3 for `description`"),
    "misspelt parameter": (f"{STEP}lats = 3", "did you mean `last`?"),
    "text for an integer": (f'{STEP}last = "3"', "need an integer, got '3' for `last`"),
    "float for an integer": (f"{STEP}last = 3.0", "need an integer, got 3.0"),
    "true for an integer": (f"{STEP}last = true", "need an integer, got True"),
    "integer for a list": (f"{STEP}layers = 3", "need a list of integers, got 3"),
    "list of the wrong items": (f'{STEP}layers = [1, "2"]', "need a list of integers"),
    "integer for true or false": (f"{STEP}explicit_layer_types = 1", "need true or false, got 1"),
    "no such choice": (
        '[[steps]]\nstep = "reduce_resolution"\nresample = "lanczos"',
        "need one of `bilinear`, `bicubic`, got 'lanczos'",
    ),
    "text for a number": (
        '[[steps]]\nstep = "prune_neurons"\nmax_ratio = "a lot"',
        "need a number, got 'a lot' for `max_ratio`",
    ),
    "a rule without a pattern": ('[[steps]]\nstep = "quantize"\nrules = [{ bits = 3 }]', "need `match`"),
    "a rule with an unknown key": (
        '[[steps]]\nstep = "quantize"\nrules = [{ match = "*", bit = 3 }]',
        "did you mean `bits`?",
    ),
    "a rule that is no table": ('[[steps]]\nstep = "quantize"\nrules = ["*"]', "need a list of tables"),
    "a step twice": ('[[steps]]\nstep = "tie_head"\n' * 2, "need `tie_head` at most once, got it 2 times"),
}


@pytest.mark.parametrize("case", ATTACKS)
def test_a_malformed_recipe_gets_one_sentence(tmp_path: Path, case: str) -> None:
    text, message = ATTACKS[case]
    path = tmp_path / "mine.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(SurgeryError) as caught:
        load_recipe(str(path))
    assert message in str(caught.value)
    if not isinstance(caught.value, SurgeryErrors):
        assert len(str(caught.value).splitlines()) <= 2


def test_everything_wrong_is_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'colour = "red"\n{STEP}last = "x"\nfoo = 1\n[[steps]]\nstep = "fly"', "utf-8")
    with pytest.raises(SurgeryErrors) as caught:
        load_recipe(str(path))
    assert len(caught.value.errors) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("drop_layers.last", "need `step.key=value` for --set"),
        ("last=3", "need `step.key=value` for --set"),
        ("fly.high=1", "need a step `fly` in the recipe"),
        ("drop_layers.lats=3", "did you mean `last`?"),
        ("drop_layers.last=many", "need an integer, got 'many'"),
    ],
)
def test_a_malformed_override_gets_one_sentence(override: str, message: str) -> None:
    with pytest.raises(SurgeryError, match=message.replace(".", r"\.").replace("?", r"\?")):
        load_recipe("mobile", [override])


def test_a_missing_recipe_names_the_nearest_preset() -> None:
    with pytest.raises(SurgeryError, match="did you mean `mobile`"):
        load_recipe("mobil")


def test_a_binary_recipe_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SurgeryError, match="cannot read"):
        load_recipe(str(path))


def test_presets_load_and_survive_the_manifest() -> None:
    assert preset_names() == ["lite", "mobile", "mobile-faithful"]
    for name in preset_names():
        recipe = load_recipe(name)
        assert Recipe.from_json(recipe.to_json()).steps == recipe.steps


def test_overrides_take_toml_values_and_bare_words() -> None:
    recipe = load_recipe("mobile", ["prune_vocabulary.keep=['ascii']", "split_weights.names=mlx"])
    steps = dict(recipe.steps)
    assert steps["prune_vocabulary"].keep == ("ascii",)  # type: ignore[attr-defined]
    assert steps["split_weights"].names == "mlx"  # type: ignore[attr-defined]
