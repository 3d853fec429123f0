"""The baseline must really do the published steps, or a ratio to it means nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench/naive_pipeline.py"
E, F, V, LAYERS, PROTECTED = 64, 256, 300, 8, 2
VISION_E, VISION_F, SIDE, NEW_SIDE = 64, 80, 16, 12
TEXT = "language_model.model."
VISION = "vision_tower.vision_model."
KEPT = [0, 1, 5, 17, 256, 299]


def add_quantized(weights, name, rows, columns):
    matrix = mx.random.normal((rows, columns)).astype(mx.bfloat16)
    packed = mx.quantize(matrix, group_size=64, bits=4)
    weights.update(zip((f"{name}.weight", f"{name}.scales", f"{name}.biases"), packed, strict=True))


def dequantized(weights, name):
    parts = (weights[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    return np.array(mx.dequantize(*parts, group_size=64, bits=4).astype(mx.float32))


def assert_quantized_from(weights, name, expected):
    """MLX rounds to the nearest code, and clips by up to one step at the far end of a group."""
    step = np.abs(np.array(weights[name + ".scales"].astype(mx.float32))).repeat(64, axis=1)
    error = np.abs(dequantized(weights, name) - expected) / step
    assert error.max() < 1.1
    assert error.mean() < 0.3


def raw(array):
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The source's weights; and for one save and for a save per stage: weights, folder and report."""
    folder = tmp_path_factory.mktemp("naive")
    mx.random.seed(0)
    weights = {}
    add_quantized(weights, TEXT + "embed_tokens", V, E)
    for part in ("weight", "scales", "biases"):
        weights[f"language_model.lm_head.{part}"] = weights[f"{TEXT}embed_tokens.{part}"]
    for layer in range(LAYERS):
        mlp = f"{TEXT}layers.{layer}.mlp."
        add_quantized(weights, mlp + "gate_proj", F, E)
        add_quantized(weights, mlp + "up_proj", F, E)
        add_quantized(weights, mlp + "down_proj", E, F)
    add_quantized(weights, VISION + "embeddings.position_embedding", SIDE * SIDE, VISION_E)
    for layer in range(2):
        mlp = f"{VISION}encoder.layers.{layer}.mlp."
        add_quantized(weights, mlp + "fc1", VISION_F, VISION_E)
        weights[mlp + "fc1.bias"] = mx.random.normal((VISION_F,)).astype(mx.bfloat16)
        weights[mlp + "fc2.weight"] = mx.random.normal((VISION_E, VISION_F)).astype(mx.bfloat16)
    weights["multi_modal_projector.mm_input_projection_weight"] = mx.ones((VISION_E, E), dtype=mx.bfloat16)
    model = folder / "model"
    model.mkdir()
    mx.save_safetensors(str(model / "model.safetensors"), weights)
    config = {
        "text_config": {"num_hidden_layers": LAYERS, "intermediate_size": F},
        "vision_config": {
            "num_hidden_layers": 2,
            "intermediate_size": VISION_F,
            "image_size": SIDE * 14,
            "patch_size": 14,
        },
    }
    (model / "config.json").write_text(json.dumps(config))
    (folder / "kept").write_text("\n".join(map(str, KEPT)))
    outputs = []
    for flags in ([], ["--save-stages"]):
        out = folder / f"out{len(outputs)}"
        command = [sys.executable, str(SCRIPT), str(model), "-o", str(out), *flags]
        command += ["--kept-ids", str(folder / "kept"), "--image-size", str(NEW_SIDE * 14)]
        command += ["--protected-layers", str(PROTECTED)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        parts = [mx.load(str(out / f"{part}_model.safetensors")) for part in ("language", "vision")]
        outputs.append((parts, out, json.loads(done.stdout.splitlines()[-1])))
    return weights, outputs


def test_saving_per_stage_gives_the_same_tensors(pair):
    _, (((language, vision), _, once), ((language2, vision2), out, staged)) = pair
    assert language.keys() == language2.keys()
    assert vision.keys() == vision2.keys()
    for first, second in ((language, language2), (vision, vision2)):
        for name, array in first.items():
            assert np.array_equal(raw(array), raw(second[name])), name
    assert once["output_bytes"] == staged["output_bytes"]
    assert staged["written_bytes"] > 3 * once["written_bytes"]
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_split_holds_every_tensor_once_and_the_report_counts_them(pair):
    _, (((language, vision), out, report), _) = pair
    assert all(name.startswith("language_model.") for name in language)
    assert not any(name.startswith("language_model.") for name in vision)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == language.keys() | vision.keys()
    total = sum(array.nbytes for part in (language, vision) for array in part.values())
    assert report["output_bytes"] == index["metadata"]["total_size"] == total
    assert report["peak_rss_bytes"] > total


def test_vocabulary_keeps_the_packed_rows_behind_a_zero_row(pair):
    source, (((language, _), _, _), _) = pair
    assert not any("lm_head" in name for name in language)
    for part in ("weight", "scales", "biases"):
        table = raw(language[f"{TEXT}embed_tokens.{part}"])
        assert not table[0].any()
        assert np.array_equal(table[1:], raw(source[f"{TEXT}embed_tokens.{part}"])[KEPT])
    expected = np.zeros(V, np.int32)
    expected[KEPT] = np.arange(1, len(KEPT) + 1)
    assert np.array_equal(np.array(language[TEXT + "embed_tokens.token_map"]), expected)


def test_last_layers_are_gone_and_the_neurons_of_largest_norm_stay(pair):
    source, (((language, _), out, _), _) = pair
    config = json.loads((out / "config.json").read_text())["text_config"]
    layers = {int(name.split(".")[3]) for name in language if ".layers." in name}
    assert layers == set(range(LAYERS - 3))
    assert config["num_hidden_layers"] == LAYERS - 3
    kept_width = F * 3 // 4
    widths = [F] * PROTECTED + [kept_width] * (LAYERS - 3 - PROTECTED)
    assert config["per_layer_intermediate_sizes"] == widths
    for layer in range(PROTECTED, LAYERS - 3):
        names = [f"{TEXT}layers.{layer}.mlp.{part}_proj" for part in ("gate", "up", "down")]
        gate, up, down = (dequantized(source, name).astype(np.float64) for name in names)
        norms = [np.linalg.norm(matrix, axis=axis) for matrix, axis in ((gate, 1), (up, 1), (down, 0))]
        kept = np.sort(np.argsort(-np.prod(norms, axis=0))[:kept_width])
        for name in names[:2]:
            assert np.array_equal(raw(language[name + ".weight"]), raw(source[name + ".weight"])[kept])
        assert_quantized_from(language, names[2], down[:, kept])


def test_padded_vision_mlp_is_the_old_one_and_zeros(pair):
    source, (((_, vision), out, _), _) = pair
    assert json.loads((out / "config.json").read_text())["vision_config"]["intermediate_size"] == 128
    for layer in range(2):
        mlp = f"{VISION}encoder.layers.{layer}.mlp."
        fc1 = dequantized(vision, mlp + "fc1")
        assert fc1.shape == (128, VISION_E)
        assert not fc1[VISION_F:].any()
        assert_quantized_from(
            vision, mlp + "fc1", np.pad(dequantized(source, mlp + "fc1"), ((0, 48), (0, 0)))
        )
        assert not np.array(vision[mlp + "fc1.bias"].astype(mx.float32))[VISION_F:].any()
        dense = np.array(source[mlp + "fc2.weight"].astype(mx.float32))
        assert_quantized_from(vision, mlp + "fc2", np.pad(dense, ((0, 0), (0, 48))))


def test_position_table_is_resampled_bilinearly(pair):
    source, (((_, vision), out, _), _) = pair
    name = VISION + "embeddings.position_embedding"
    grid = dequantized(source, name).reshape(SIDE, SIDE, -1)
    centre = (np.arange(NEW_SIDE) + 0.5) * SIDE / NEW_SIDE - 0.5
    low = np.floor(centre).astype(int)
    share = (centre - low)[:, None, None]
    rows = grid[low] * (1 - share) + grid[np.minimum(low + 1, SIDE - 1)] * share
    columns = rows.transpose(1, 0, 2)
    both = columns[low] * (1 - share) + columns[np.minimum(low + 1, SIDE - 1)] * share
    expected = both.transpose(1, 0, 2).reshape(NEW_SIDE**2, -1)
    assert_quantized_from(vision, name, expected)
    config = json.loads((out / "config.json").read_text())
    assert (
        config["mm_tokens_per_image"] == config["text_config"]["mm_tokens_per_image"] == (NEW_SIDE // 4) ** 2
    )
