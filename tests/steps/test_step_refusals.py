"""Edits that would break the model are refused with the reason and the nearest valid choice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from compressing import compress_steps, plan_steps, read_json
from independent import read_all

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.steps.prune_neurons import remaining_width

KEEP = '[[steps]]\nstep = "prune_vocabulary"\n'
TO_REFUSE = {
    "a middle layer shifts the pattern": (
        '[[steps]]\nstep = "drop_layers"\nlayers = [3]',
        "dropping layers 3 shifts the local/global pattern: layer 5 is full_attention",
        "drop the last 1 (7)",
    ),
    "too few layers": (
        '[[steps]]\nstep = "drop_layers"\nlast = 3',
        "need at least 6 decoder layers, one local/global period, got 5",
        "drop at most the last 2",
    ),
    "more layers than there are": (
        '[[steps]]\nstep = "drop_layers"\nlast = 8',
        "need `last` in 1..7, got 8",
        "",
    ),
    "a layer that does not exist": (
        '[[steps]]\nstep = "drop_layers"\nlayers = [7, 8, 99]',
        "need layers in 0..7, got 8, 99",
        "",
    ),
    "last and layers": (
        '[[steps]]\nstep = "drop_layers"\nlast = 1\nlayers = [7]',
        "need either `last` or `layers`, got both",
        "",
    ),
    "a grid that the pooling does not divide": (
        '[[steps]]\nstep = "reduce_resolution"\nimage_size = 182',
        "need an image size divisible by 56 for pooling 4 x 4 patches of 14 pixels, got `image_size = 182`",
        "nearest valid size: 168",
    ),
    "an image size of nothing": (
        '[[steps]]\nstep = "reduce_resolution"\nimage_size = 0',
        "got `image_size = 0`",
        "nearest valid size: 56",
    ),
    "image tokens that are no square": (
        '[[steps]]\nstep = "reduce_resolution"\nimage_size = 168\ntokens_per_image = 10',
        "need a square number of image tokens",
        "nearest: 9",
    ),
    "image tokens that do not pool the grid": (
        '[[steps]]\nstep = "reduce_resolution"\nimage_size = 168\ntokens_per_image = 25',
        "divisible by 70",
        "nearest valid size: 140",
    ),
    "no newline tokens": (f'{KEEP}keep = ["ascii"]', "newline tokens", "add `typographic`"),
    "no special and byte tokens": (f"{KEEP}keep = []", "special tokens", "add `special`"),
    "an unknown keep set": (f'{KEEP}keep = ["klingon"]', "need a known keep set, got `klingon`", "`ascii`"),
    "more rows than tokens": (f"{KEEP}fill_rows = 99999", "need 99999 rows", ""),
    "fewer rows than kept": (f"{KEEP}fill_rows = 10", "`fill_rows` = 10", ""),
    "a corpus that is missing": (f'{KEEP}corpus = ["nowhere.txt"]', "nowhere.txt", ""),
    "a padding that is no multiple of the group": (
        '[[steps]]\nstep = "pad_vision_mlp"\nmultiple = 100',
        "need a multiple of the group size 64",
        "",
    ),
    "a ratio of all neurons": (
        '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\nmax_ratio = 1.0',
        "need `max_ratio` in [0, 1), got 1.0",
        "",
    ),
    "an alignment that splits groups": (
        '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\nalignment = 48',
        "need an alignment divisible by group size 64",
        "",
    ),
    "protected layers that do not exist": (
        '[[steps]]\nstep = "prune_neurons"\nprotect_first = 14',
        "need protected layers within 0..7, got 14",
        "8 decoder layers at this point",
    ),
    "scores by a profile that is not given": (
        '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\nscores = "activation"',
        'need `profile` for `scores = "activation"`, got none',
        "gemma-surgery profile",
    ),
    "neurons pruned twice by scores": (
        '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\n' * 2,
        "need neurons that were not pruned by scores before",
        "",
    ),
    "bits that do not exist": ('[[steps]]\nstep = "quantize"\nbits = 7\nrequantize = true', "got 7", ""),
    "a group size that does not exist": (
        '[[steps]]\nstep = "quantize"\ngroup_size = 48\nrequantize = true',
        "got 48",
        "",
    ),
    "a mode that does not exist": ('[[steps]]\nstep = "quantize"\nmode = "q4_0"', "`q4_0`", ""),
    "a pattern that matches nothing": (
        '[[steps]]\nstep = "quantize"\nkeep = ["*.dwon_proj.weight"]',
        "need patterns that match a tensor, got `*.dwon_proj.weight`",
        "",
    ),
    "tying a head that was cut differently": (
        f'{KEEP}head = "keep"\n[[steps]]\nstep = "tie_head"',
        "to be stored like",
        "put `tie_head` before",
    ),
}


@pytest.mark.parametrize("case", TO_REFUSE)
def test_refused_with_reason_and_hint(tiny: Path, tmp_path: Path, case: str) -> None:
    toml, reason, hint = TO_REFUSE[case]
    with pytest.raises(SurgeryError) as caught:
        plan_steps(tiny, tmp_path, toml)
    assert reason in str(caught.value)
    assert hint in str(caught.value)


def test_all_steps_that_do_not_fit_are_reported_together(tiny: Path, tmp_path: Path) -> None:
    toml = "\n".join(TO_REFUSE[case][0] for case in list(TO_REFUSE)[:3])
    with pytest.raises(SurgeryError) as caught:
        plan_steps(tiny, tmp_path, toml)
    for case in list(TO_REFUSE)[:3]:
        assert TO_REFUSE[case][1] in str(caught.value)


def test_a_pruned_vocabulary_is_not_pruned_again(tiny: Path, tmp_path: Path) -> None:
    output = compress_steps(tiny, tmp_path, KEEP)
    with pytest.raises(SurgeryError, match="pruned already"):
        plan_steps(output, tmp_path, KEEP)


def test_a_middle_cut_with_explicit_layer_types_writes_them(tiny: Path, tmp_path: Path) -> None:
    toml = '[[steps]]\nstep = "drop_layers"\nlayers = [3]\nexplicit_layer_types = true'
    output = compress_steps(tiny, tmp_path, toml)
    text = read_json(output / "config.json")["text_config"]
    types = ["sliding_attention"] * 4 + ["full_attention"] + ["sliding_attention"] * 2
    assert text["layer_types"] == types and text["num_hidden_layers"] == 7
    before, after = read_all(tiny), read_all(output)
    for old, new in ((2, 2), (4, 3), (7, 6)):
        name = "language_model.model.layers.{}.self_attn.q_proj.weight"
        assert after[name.format(new)] == before[name.format(old)]


def test_a_head_that_differs_is_not_dropped(tiny: Path, tmp_path: Path) -> None:
    import shutil

    from gemma_surgery.surgery.executor import execute

    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    checkpoint = open_checkpoint(source)
    head = checkpoint.tensors["language_model.lm_head.weight"]
    with (source / head.file).open("r+b") as file:
        file.seek(head.start + 5000)
        byte = file.read(1)[0]
        file.seek(head.start + 5000)
        file.write(bytes([byte ^ 1]))
    plan = plan_steps(source, tmp_path, '[[steps]]\nstep = "tie_head"')
    with pytest.raises(SurgeryError, match="bit-identical"):
        execute(plan, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("differs", [False, True])
def test_a_head_of_scales_and_biases_alone_is_compared_and_dropped(
    tiny: Path, tmp_path: Path, differs: bool
) -> None:
    import shutil

    from gemma_surgery.checkpoint.header import encode_header
    from gemma_surgery.surgery.executor import execute

    head = "language_model.lm_head."
    tensors = {name: raw for name, raw in read_all(tiny).items() if name != f"{head}weight"}
    header, _ = encode_header([(name, raw.dtype, raw.shape) for name, raw in tensors.items()])
    data = {name: bytearray(raw.data) for name, raw in tensors.items()}
    data[f"{head}biases"][7] ^= differs
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    (source / "model.safetensors").write_bytes(header + b"".join(data.values()))
    plan = plan_steps(source, tmp_path, '[[steps]]\nstep = "tie_head"')
    assert plan.steps[0].saved_bytes == sum(len(data[f"{head}{role}"]) for role in ("scales", "biases"))
    if differs:
        with pytest.raises(SurgeryError, match="bit-identical"):
            execute(plan, tmp_path / "output")
        return
    execute(plan, tmp_path / "output")
    assert not [name for name in read_all(tmp_path / "output") if name.startswith(head)]


@pytest.mark.parametrize(
    ("width", "alive", "ratio", "expected"),
    [
        (10240, 0, 0.25, 7680),
        (10240, 10240, 0.25, 10240),
        (10240, 8000, 0.25, 8000),
        (10240, 8063, 0.25, 8000),
        (10240, 7000, 0.25, 7680),
        (10240, 0, 0.2, 8192),
        (10240, 0, 0.0, 10240),
        (1000, 0, 0.25, 768),
        (100, 0, 0.25, 100),
    ],
)
def test_equation_18(width: int, alive: int, ratio: float, expected: int) -> None:
    assert remaining_width(width, alive, ratio, 64) == expected


def test_whole_groups_of_neurons_move_without_requantizing(tiny: Path, tmp_path: Path) -> None:
    toml = '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\ngranularity = "group"'
    plan = plan_steps(tiny, tmp_path, toml)
    assert plan.steps[0].lossless
    output = compress_steps(tiny, tmp_path, toml)
    before, after = read_all(tiny), read_all(output)
    name = "language_model.model.layers.4.mlp.down_proj."
    groups = {column.tobytes(): index for index, column in enumerate(before[f"{name}scales"].values.T)}
    kept = [groups[column.tobytes()] for column in after[f"{name}scales"].values.T]
    assert len(kept) == 6 and kept == sorted(kept)
    words = before[f"{name}weight"].values.reshape(128, 8, 8)[:, kept].reshape(128, 48)
    assert np.array_equal(after[f"{name}weight"].values, words)
