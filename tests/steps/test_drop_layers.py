"""Dropping the layers of least influence: the cheapest choice that keeps the local/global pattern."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from calibrated import LAYERS, MadeUp, made_up
from compressing import compress_steps, plan_steps, read_json
from independent import read_all

from gemma_surgery.calibration import profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import cheapest_layers
from gemma_surgery.families.gemma3 import Gemma3

AUTO = '[[steps]]\nstep = "drop_layers"\nauto = {}\nprofile = "{}"\n'


def with_influence(values: list[float]) -> MadeUp:
    measured = made_up(hessians=False)
    for layer, influence in enumerate(values):
        measured.statistics[f"{LAYERS}{layer}.{profile.INFLUENCE}"] = np.array([influence], np.float32)
    return measured


@pytest.mark.parametrize(
    ("total", "pattern", "count"), [(14, 3, 9), (14, 6, 11), (12, 6, 6), (13, 2, 8), (9, 4, 9)]
)
@pytest.mark.parametrize("any_layer", [False, True])
def test_the_choice_is_the_best_of_all(total: int, pattern: int, count: int, any_layer: bool) -> None:
    family = Gemma3(
        {"model_type": "gemma3_text", "num_hidden_layers": total, "sliding_window_pattern": pattern}
    )
    types, derived = family.layer_types, family.types_by_pattern(count)
    for seed in range(5):
        cost = np.random.default_rng(seed).uniform(0, 1, total).tolist()
        fitting = [
            kept
            for kept in combinations(range(total), count)
            if any_layer or [types[layer] for layer in kept] == derived
        ]
        best = max(fitting, key=lambda kept: sum(cost[layer] for layer in kept))
        assert cheapest_layers(family, count, cost, any_layer) == list(best)


def test_where_the_types_follow_no_pattern_there_is_no_choice() -> None:
    family = Gemma3(
        {
            "model_type": "gemma3_text",
            "num_hidden_layers": 4,
            "sliding_window_pattern": 2,
            "layer_types": ["full_attention"] * 4,
        }
    )
    with pytest.raises(SurgeryError, match="whose types follow the pattern, got none"):
        cheapest_layers(family, 2, [1, 2, 3, 4], False)
    assert cheapest_layers(family, 2, [1, 4, 2, 3], True) == [1, 3]


def test_the_least_influential_layer_that_may_go_goes(tiny: Path, tmp_path: Path) -> None:
    # Layer 2 has least influence, but without it layer 5, a global one, would be run as a local one.
    path = with_influence([0.5, 0.4, 0.01, 0.3, 0.3, 0.3, 0.1, 0.2]).write(tmp_path / "a.profile", tiny)
    plan = plan_steps(tiny, tmp_path, AUTO.format(1, path))
    assert "0.1000" in plan.steps[0].notes[0] and "0.0100 or more" in plan.steps[0].notes[0]
    assert "dropped 6" in plan.steps[0].notes[1]
    assert plan.steps[0].profile_sha256 is not None
    output = compress_steps(tiny, tmp_path, AUTO.format(1, path))
    name = "language_model.model.layers.{}.mlp.up_proj.weight"
    assert read_all(output)[name.format(6)] == read_all(tiny)[name.format(7)]


def test_with_explicit_types_any_layer_may_go(tiny: Path, tmp_path: Path) -> None:
    path = with_influence([0.5, 0.4, 0.01, 0.3, 0.02, 0.3, 0.1, 0.2]).write(tmp_path / "a.profile", tiny)
    text = f"{AUTO.format(2, path)}explicit_layer_types = true"
    output = compress_steps(tiny, tmp_path, text)
    text_config = read_json(output / "config.json")["text_config"]
    assert (
        text_config["layer_types"]
        == ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 2
    )


def test_influence_is_that_of_the_layer_in_the_source(tiny: Path, tmp_path: Path) -> None:
    path = with_influence([0.5, 0.4, 0.3, 0.3, 0.3, 0.3, 0.2, 0.1]).write(tmp_path / "a.profile", tiny)
    first = '[[steps]]\nstep = "drop_layers"\nlayers = [6]\n'
    plan = plan_steps(tiny, tmp_path, f"{first}{AUTO.format(1, path)}explicit_layer_types = true")
    assert "6 (0.1000)" in plan.steps[1].notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("auto = 1", "need `profile` for `auto = 1`, got none"),
        ('auto = 0\nprofile = "PROFILE"', r"need `auto` in 1\.\.7, got 0"),
        ('auto = 8\nprofile = "PROFILE"', r"need `auto` in 1\.\.7, got 8"),
        ('auto = 3\nprofile = "PROFILE"', "need at least 6 decoder layers, one local/global period, got 5"),
        ('auto = 1\nlast = 1\nprofile = "PROFILE"', "need either `auto` or `last`, got both"),
        ('auto = 1\nlayers = [7]\nprofile = "PROFILE"', "need either `auto` or `layers`, got both"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tiny: Path, tmp_path: Path, text: str, message: str) -> None:
    path = with_influence([0.1] * 8).write(tmp_path / "a.profile", tiny)
    with pytest.raises(SurgeryError, match=message):
        plan_steps(tiny, tmp_path, f'[[steps]]\nstep = "drop_layers"\n{text.replace("PROFILE", str(path))}')
