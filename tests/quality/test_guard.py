"""Guard rails: limits that are passed, steps that are left out, and published failures in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.guard import Limit, guarded
from gemma_surgery.quality.referee import Referee
from gemma_surgery.recipes.recipe import load_recipe, make_plan

HARSH = """
[[steps]]
step = "pad_vision_mlp"

[[steps]]
step = "drop_layers"
layers = [0, 1, 2]
explicit_layer_types = true

[[steps]]
step = "prune_neurons"
protect_first = 3
max_ratio = 0.125

[[steps]]
step = "split_weights"
"""


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return open_checkpoint(demo_model_path("4bit"))


@pytest.fixture(scope="module")
def referee(source: Checkpoint) -> Referee:
    import random

    rng = random.Random(3)
    tasks = [random_task(rng, kind, split="held_out") for kind in ENGLISH_KINDS * 2]
    return Referee(source, [Passage(task.kind, task.prompt, task.answer) for task in tasks])


def recipe(tmp_path: Path, text: str):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return load_recipe(str(path))


def test_a_step_that_passes_the_limit_stops_with_its_name_and_figure(source, referee, tmp_path) -> None:
    with pytest.raises(SurgeryError, match=r"at most 0\.3, got .* after step 2, `drop_layers`; nothing was"):
        guarded(source, recipe(tmp_path, HARSH), Limit(0.3), referee, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


def test_it_can_be_left_out_and_the_others_stay(source, referee, tmp_path) -> None:
    told = []
    kept, costs = guarded(
        source, recipe(tmp_path, HARSH), Limit(0.3), referee, action="skip", on_step=told.append
    )
    assert [name for name, _ in kept.steps] == ["pad_vision_mlp", "prune_neurons", "split_weights"]
    assert told == costs
    assert [cost.is_kept for cost in costs] == [True, False, True, True]
    means = [cost.divergence and cost.divergence.kld.mean.value for cost in costs]
    assert means[1] > 0.3 >= means[2] > 0
    # Nothing that text shows is changed by the padding, and splitting is not worth a measurement.
    assert means[0] == 0
    assert means[3] is None
    assert costs[3].size_bytes == make_plan(source, kept).output_bytes


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            'step = "prune_vocabulary"\nkeep = ["special", "typographic"]\nfile = "{file}"',
            "the vocabulary is too small: ",
        ),
        ('step = "drop_vision_layers"\nlayers = [1]', "1 of 3 vision layers are removed"),
        ('step = "reduce_resolution"\nimage_size = 112', "the resolution is too small: 112 of 224 pixels"),
    ],
)
def test_published_failures_are_named_before_time_is_spent(source, tmp_path, step: str, words: str) -> None:
    (tmp_path / "words").write_text("▁cat\n▁dog\n")
    named = recipe(tmp_path, "[[steps]]\n" + step.replace("{file}", str(tmp_path / "words")))
    (report,) = make_plan(source, named).steps
    assert words in report.warnings[0]
    assert report.to_json()["warnings"] == list(report.warnings)

    class Idle:
        def judge(self, candidate, phase=""):
            raise AssertionError("measured what is known to fail")

    with pytest.raises(SurgeryError, match=words):
        guarded(source, named, Limit(1.0), Idle())  # type: ignore[arg-type]


def test_the_presets_of_this_project_warn_of_nothing(source) -> None:
    scaled = ["drop_layers.last=1", "reduce_resolution.image_size=168", "prune_neurons.protect_first=3"]
    assert not [
        step.warnings for step in make_plan(source, load_recipe("mobile", scaled)).steps if step.warnings
    ]


@pytest.mark.parametrize("text", ["0.05", "kl=", "kl=-1", "kl=nan", "ppl=3"])
def test_limits_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(SurgeryError, match=r"need `kl=NUMBER`"):
        Limit.parse(text)


def test_limits_are_read() -> None:
    assert Limit.parse(" kl=0.05 ") == Limit(0.05)
    assert Limit.parse("kl=5e-2") == Limit(0.05)
