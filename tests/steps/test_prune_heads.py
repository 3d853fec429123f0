"""Removing groups of attention heads: which ones, what is left of them, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrated import LAYERS, MadeUp, as_float32, made_up
from compressing import compress_steps, plan_steps, read_json
from independent import read_all, value

from gemma_surgery.calibration import profile
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.models import load_model
from gemma_surgery.verification import check_structure, verify

PRUNE = '[[steps]]\nstep = "prune_heads"\n'
# The demo model: 4 heads of 32 dimensions in 2 groups.
GROUP_ROWS = {"q_proj": 64, "k_proj": 32, "v_proj": 32}
IDS = mx.array([[2, 300, 301, 302, 303, 304, 305]])


def with_importance(source: Path, path: Path, least: list[int]) -> Path:
    """A profile by which group `least[layer]` matters least."""
    measured = made_up(hessians=False)
    for layer, group in enumerate(least):
        importance = np.ones(4, np.float32)
        importance[2 * group + 1] = 0.5
        measured.statistics[f"{LAYERS}{layer}.self_attn.{profile.HEADS}"] = importance
    return MadeUp({}, measured.statistics).write(path, source)


@pytest.mark.parametrize("measured", [True, False])
def test_a_group_that_adds_nothing_leaves_the_output_as_it_is(
    tiny_dense: Path, tmp_path: Path, measured: bool
) -> None:
    idle = [layer % 2 for layer in range(8)]

    def silence(tensors: dict[str, mx.array]) -> None:
        for layer, group in enumerate(idle):
            name = f"{LAYERS}{layer}.self_attn.o_proj.weight"
            mask = mx.ones(128)
            mask[64 * group : 64 * (group + 1)] = 0
            tensors[name] = tensors[name] * mask

    source = as_float32(tiny_dense, tmp_path / "source", silence)
    text = PRUNE
    if measured:
        text += f'profile = "{with_importance(source, tmp_path / "a.profile", idle)}"'
    output = compress_steps(source, tmp_path, text)
    text_config = read_json(output / "config.json")["text_config"]
    assert (text_config["num_attention_heads"], text_config["num_key_value_heads"]) == (2, 1)
    before, after = (np.asarray(load_model(folder, dtype=mx.float32)(IDS)) for folder in (source, output))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_a_group_that_matters_changes_the_output(tiny_dense: Path, tmp_path: Path) -> None:
    source = as_float32(tiny_dense, tmp_path / "source", lambda tensors: None)
    output = compress_steps(source, tmp_path, PRUNE)
    before, after = (np.asarray(load_model(folder, dtype=mx.float32)(IDS)) for folder in (source, output))
    assert np.abs(after - before).max() > 0.1


def test_rows_and_columns_of_the_kept_groups_are_copied(tiny: Path, tmp_path: Path) -> None:
    least = [0, 1, 1, 0, 1, 0, 0, 1]
    path = with_importance(tiny, tmp_path / "a.profile", least)
    plan = plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    # A group of heads fills whole quantization groups: nothing is decoded.
    assert plan.steps[0].lossless
    output = compress_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    before, after = read_all(tiny), read_all(output)
    for layer, gone in enumerate(least):
        prefix = f"{LAYERS}{layer}.self_attn."
        for name, rows in GROUP_ROWS.items():
            kept = slice(rows * (1 - gone), rows * (2 - gone))
            for role in ("weight", "scales", "biases"):
                old, new = before[f"{prefix}{name}.{role}"], after[f"{prefix}{name}.{role}"]
                assert np.array_equal(new.rows, old.rows[kept])
        old, new = (value(tensors, f"{prefix}o_proj.weight") for tensors in (before, after))
        np.testing.assert_array_equal(new, old[:, 64 * (1 - gone) : 64 * (2 - gone)])
    checkpoint = open_checkpoint(output)
    assert check_structure(checkpoint).problems == []
    assert verify(output, open_checkpoint(tiny)).ok
    assert f"0: {least[0]}; 1: {least[1]}" in plan.steps[0].notes[1]


def test_without_a_profile_the_product_of_norms_decides(tiny: Path, tmp_path: Path) -> None:
    before, after = read_all(tiny), read_all(compress_steps(tiny, tmp_path, PRUNE))
    for layer in range(8):
        prefix = f"{LAYERS}{layer}.self_attn."
        scores = np.ones(2)
        for name, rows in GROUP_ROWS.items():
            weight = value(before, f"{prefix}{name}.weight")
            scores *= np.linalg.norm(weight.reshape(2, rows * 128), axis=1)
        output = value(before, f"{prefix}o_proj.weight").T.reshape(2, 64 * 128)
        scores *= np.linalg.norm(output, axis=1)
        kept = int(np.argmax(scores))
        rows = before[f"{prefix}q_proj.weight"].rows[64 * kept : 64 * (kept + 1)]
        assert np.array_equal(after[f"{prefix}q_proj.weight"].rows, rows)


@pytest.mark.parametrize("groups", [0, 2, -1])
def test_at_least_one_group_stays(tiny: Path, tmp_path: Path, groups: int) -> None:
    with pytest.raises(SurgeryError, match=rf"need `groups` in 1\.\.1, got {groups}"):
        plan_steps(tiny, tmp_path, f"{PRUNE}groups = {groups}")


def test_one_kv_head_is_not_pruned(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="need more than one kv head"):
        plan_steps(tiny, tmp_path, PRUNE * 2)


def test_a_profile_without_heads_is_refused(tiny: Path, tmp_path: Path) -> None:
    statistics = {n: v for n, v in made_up(hessians=False).statistics.items() if profile.HEADS not in n}
    path = MadeUp({}, statistics).write(tmp_path / "a.profile", tiny)
    with pytest.raises(SurgeryError, match=r"need 4 values under `.*\.head_importance`, got nothing"):
        plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
