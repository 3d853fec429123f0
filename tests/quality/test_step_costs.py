"""What each step of a recipe costs: measured like the whole, of a recipe that still makes the output."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from calibrated import made_up
from compressing import compress_steps, read_json

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.cli import compress
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.errors import SurgeryError
from gemma_surgery.quality.evaluation import evaluate
from gemma_surgery.quality.guard import Limit, guarded
from gemma_surgery.quality.referee import Referee
from gemma_surgery.quality.results import Evaluation
from gemma_surgery.quality.step_costs import measure_steps, recipe_behind

REST = ("contractions", "repetition", "tasks", "images")
UNMEASURED = ("tie_head", "split_weights")


@pytest.fixture(scope="module")
def source(dense: Path) -> Checkpoint:
    return open_checkpoint(dense)


@pytest.fixture(scope="module")
def recipe(source, mobile):
    return recipe_behind(open_checkpoint(mobile), source)


@pytest.fixture(scope="module")
def evaluation(source, mobile, passages, recipe) -> Evaluation:
    return evaluate(mobile, source, passages[:6], skip=REST, recipe=recipe)


def test_every_step_appears_and_those_that_change_no_answer_are_not_measured(evaluation, mobile) -> None:
    assert evaluation.steps is not None
    manifest = read_json(mobile / "surgery.json")
    assert [cost.step for cost in evaluation.steps] == [each["step"] for each in manifest["recipe"]["steps"]]
    assert [cost.number for cost in evaluation.steps] == list(range(1, len(evaluation.steps) + 1))
    assert tuple(cost.step for cost in evaluation.steps if cost.divergence is None) == UNMEASURED
    size = manifest["source"]["tensor_bytes"]
    for cost, step in zip(evaluation.steps, manifest["steps"], strict=True):
        size += step["added_bytes"] - step["saved_bytes"]
        assert cost.size_bytes == size and cost.is_kept


def test_the_last_measured_step_is_the_output_to_the_last_bit(evaluation) -> None:
    last = [cost.divergence for cost in evaluation.steps if cost.divergence is not None][-1]
    assert last == evaluation.divergence
    assert 0 < evaluation.steps[0].divergence.kld.mean.value < last.kld.mean.value


def test_a_record_has_the_keys_of_the_whole(evaluation) -> None:
    document = evaluation.to_json()
    record = next(each for each in reversed(document["steps"]) if each["mean_kld"] is not None)
    shared = record.keys() & document.keys()
    assert shared == {
        *("mean_kld", "kld_stderr", "kld_99", "kld_is_lower_bound", "same_top", "same_top_stderr"),
        *("kld", "positions"),
    }
    assert {key: record[key] for key in shared} == {key: document[key] for key in shared}
    assert record.keys() - shared == {"step", "number", "size_bytes", "is_kept"}
    unmeasured = document["steps"][-1]
    assert unmeasured.keys() == record.keys() and unmeasured["kld"] is None and unmeasured["same_top"] is None
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_guard_measures_the_same(source, recipe, passages, evaluation) -> None:
    referee = Referee(source, passages[:6])
    kept, costs = guarded(source, recipe, Limit(10.0), referee)
    assert kept == recipe and tuple(costs) == evaluation.steps


def test_steps_measured_from_a_cache_are_lower_bounds_and_the_original_is_not_run(
    source, mobile, passages, recipe, evaluation, tmp_path
) -> None:
    short = replace(recipe, steps=recipe.steps[:1])
    options = {"skip": REST, "cache": tmp_path / "cache"}
    evaluate(mobile, source, passages[:6], **options)
    found = evaluate(mobile, source, passages[:6], recipe=short, **options)
    assert found.steps is not None and "reference" not in found.seconds
    bound, exact = found.steps[0].divergence, evaluation.steps[0].divergence
    assert bound.is_lower_bound and 0 < bound.kld.mean.value <= exact.kld.mean.value


def test_a_step_that_is_not_kept_is_no_part_of_those_behind_it(source, recipe, passages, tmp_path) -> None:
    referee = Referee(source, passages[:1])
    costs = list(
        measure_steps(source, recipe, referee, keeps=lambda cost: cost.divergence is None, folder=tmp_path)
    )
    assert [cost.is_kept for cost in costs] == [cost.step in UNMEASURED for cost in costs]
    assert costs[-1].size_bytes == source.size_bytes
    # What was made in between is gone.
    assert list(tmp_path.iterdir()) == []


def test_scenes_show_what_a_smaller_resolution_costs(source, mobile, scenes, recipe) -> None:
    names = [name for name, _ in recipe.steps]
    picked = names.index("drop_layers"), names.index("reduce_resolution")
    short = replace(recipe, steps=tuple(recipe.steps[index] for index in picked))
    found = evaluate(mobile, source, scenes, skip=REST, recipe=short)
    before, after = (cost.divergence.kld.mean.value for cost in found.steps)
    assert before != after


def test_an_output_without_a_manifest_is_refused(source, mobile, tmp_path) -> None:
    with pytest.raises(SurgeryError, match=r"need a `surgery.json` in `.*bf16` for the cost of each step"):
        recipe_behind(source, source)


def test_another_reference_than_the_source_is_refused(mobile) -> None:
    with pytest.raises(SurgeryError, match="`mobile` is made of another checkpoint: fingerprint") as raised:
        recipe_behind(open_checkpoint(mobile), open_checkpoint(demo_model_path("4bit")))
    assert "`--reference`" in raised.value.hint


def test_a_recipe_that_makes_something_else_by_now_is_refused(source, dense, tmp_path) -> None:
    words = tmp_path / "words"
    words.write_text("▁cat\n")
    output = compress_steps(
        dense,
        tmp_path,
        f'[[steps]]\nstep = "prune_vocabulary"\nkeep = ["special", "typographic"]\nfile = "{words}"\n',
    )
    assert recipe_behind(open_checkpoint(output), source).steps[0][0] == "prune_vocabulary"
    words.write_text("▁cat\n▁dog\n")
    with pytest.raises(SurgeryError, match="need the files that the recipe of `output` names as they were"):
        recipe_behind(open_checkpoint(output), source)


def test_a_profile_that_moved_is_found_where_it_is_said_to_be(source, dense, tmp_path) -> None:
    profile = made_up(hessians=False).write(tmp_path / "old.profile", dense)
    step = 'step = "prune_neurons"\nprotect_first = 6\nscores = "activation"\n'
    output = compress_steps(dense, tmp_path, f'profile = "{profile}"\n[[steps]]\n{step}')
    moved = Path(shutil.move(profile, tmp_path / "new.profile"))
    with pytest.raises(
        SurgeryError, match=r"need the profile `.*old.profile` that made `output`, got"
    ) as raised:
        recipe_behind(open_checkpoint(output), source)
    assert raised.value.hint == "say where it lies with `--profile`"
    assert recipe_behind(open_checkpoint(output), source, moved).path(str(profile)) == moved


def test_steps_need_a_reference_and_the_divergence(source, mobile, recipe, passages) -> None:
    with pytest.raises(SurgeryError, match="need a reference for the cost of each step"):
        evaluate(mobile, None, passages, recipe=recipe)
    with pytest.raises(SurgeryError, match="need the divergence for the cost of each step"):
        evaluate(mobile, source, passages, skip=("divergence",), recipe=recipe)


def test_the_guard_scores_the_texts_that_it_is_given(dense: Path, tmp_path: Path, capsys) -> None:
    texts = tmp_path / "own.jsonl"
    texts.write_text('{"prompt": "Say it.", "text": "It is said."}\n')
    given = {"guard": "kl=100", "guard_texts": texts, "measure": False, "quiet": True, "json": True}
    compress.command(
        str(dense),
        tmp_path / "out",
        "lite",
        ["drop_layers.last=1", "reduce_resolution.image_size=168"],
        **given,
    )
    protocol = json.loads(capsys.readouterr().out.splitlines()[-1])["guard_protocol"]
    assert (protocol["passages"], protocol["samples"]) == (1, 1)
