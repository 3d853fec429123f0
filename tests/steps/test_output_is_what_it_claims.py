"""Outputs read with safetensors and NumPy alone: exact where claimed, no worse than MLX elsewhere."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from compressing import SCALED, folder_hashes, plan_recipe, read_json
from demo_checkpoints import published_demo
from independent import Raw, config, dequantize, read_all, total_bytes, value

from gemma_surgery.surgery.executor import execute
from gemma_surgery.surgery.plan import Plan
from gemma_surgery.synthesis import synthesis_plan

LAYERS = "language_model.model.layers."
VISION = "vision_tower.vision_model."
TABLE = "language_model.model.embed_tokens."


@pytest.fixture(scope="module")
def compressed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("mobile") / "output"
    execute(plan_recipe(tiny), target)
    return target


@pytest.fixture(scope="module")
def plan(tiny: Path) -> Plan:
    return plan_recipe(tiny)


@pytest.fixture(scope="module")
def before(tiny: Path) -> dict[str, Raw]:
    return read_all(tiny)


@pytest.fixture(scope="module")
def after(compressed: Path) -> dict[str, Raw]:
    return read_all(compressed)


def test_plan_equals_result(plan: Plan, compressed: Path, after: dict[str, Raw]) -> None:
    index = config(compressed, "model.safetensors.index.json")
    assert plan.output_bytes == total_bytes(after) == index["metadata"]["total_size"]
    assert set(index["weight_map"]) == set(after)
    for planned in plan.tensors:
        for part in planned.parts:
            assert after[part.component.name].shape == part.component.shape


def test_rows_of_the_compact_table_are_rows_of_the_source(
    before: dict[str, Raw], after: dict[str, Raw]
) -> None:
    token_map = after[f"{TABLE}token_map"].values
    kept = np.flatnonzero(token_map)
    assert np.array_equal(token_map[kept], np.arange(1, len(kept) + 1))
    for role in ("weight", "scales", "biases"):
        rows = after[f"{TABLE}{role}"].rows
        assert not rows[0].any()
        assert np.array_equal(rows[1:], before[f"{TABLE}{role}"].rows[kept])


def test_layers_that_no_step_cuts_are_copied_bit_for_bit(
    before: dict[str, Raw], after: dict[str, Raw]
) -> None:
    untouched = [name for name in after if name.startswith((f"{LAYERS}0.", f"{LAYERS}1."))]
    untouched += [name for name in after if "self_attn" in name or "norm" in name]
    assert len(untouched) > 150
    for name in untouched:
        assert after[name] == before[name], name


def test_dropped_layers_and_the_duplicate_head_are_gone(after: dict[str, Raw]) -> None:
    assert not [
        name for name in after if name.startswith((f"{LAYERS}6.", f"{LAYERS}7.")) or "lm_head" in name
    ]


def test_fc1_rows_are_the_source_rows_then_zeros(before: dict[str, Raw], after: dict[str, Raw]) -> None:
    for layer in range(3):
        for role in ("weight", "scales", "biases", "bias"):
            name = f"{VISION}encoder.layers.{layer}.mlp.fc1.{role}"
            assert after[name].shape[0] == 320
            assert np.array_equal(after[name].rows[:272], before[name].rows)
            assert not after[name].rows[272:].any()


def test_padding_columns_of_fc2_decode_to_exact_zeros(before: dict[str, Raw], after: dict[str, Raw]) -> None:
    for layer in range(3):
        name = f"{VISION}encoder.layers.{layer}.mlp.fc2.weight"
        decoded = dequantize(after, name)
        assert decoded.shape == (64, 320)
        assert not decoded[:, 272:].any()
        wanted = before[name].values
        assert rms(decoded[:, :272] - wanted) < 0.15 * rms(wanted)


def test_gate_up_and_down_lose_the_same_neurons(before: dict[str, Raw], after: dict[str, Raw]) -> None:
    for layer in range(2, 6):
        prefix = f"{LAYERS}{layer}.mlp."
        kept = kept_rows(before[f"{prefix}gate_proj.weight"], after[f"{prefix}gate_proj.weight"])
        assert len(kept) == 384
        for matrix in ("gate_proj", "up_proj"):
            for role in ("weight", "scales", "biases"):
                old, new = before[f"{prefix}{matrix}.{role}"], after[f"{prefix}{matrix}.{role}"]
                assert np.array_equal(new.rows, old.rows[kept])
        down_before = dequantize(before, f"{prefix}down_proj.weight")[:, kept]
        down_after = dequantize(after, f"{prefix}down_proj.weight")
        assert rms(down_after - down_before) < 0.15 * rms(down_before)
        assert np.array_equal(kept, neurons_by_norm(before, prefix, 384))


def test_requantized_tensors_are_no_worse_than_mlx(before: dict[str, Raw], after: dict[str, Raw]) -> None:
    for name, wanted in requantized(before, after).items():
        ours = rms(dequantize(after, name) - wanted)
        # MLX is measured against its own input: the rounding to bf16 is not held against it.
        given = mx.array(wanted.astype(np.float32)).astype(mx.bfloat16)
        packed = mx.quantize(given, group_size=64, bits=4)
        weight, scales, biases = (
            np.array(part.astype(mx.float32) if i else part) for i, part in enumerate(packed)
        )
        codes = np.stack([(weight >> shift) & 15 for shift in range(0, 32, 4)], axis=-1).reshape(wanted.shape)
        theirs = scales.astype(np.float64).repeat(64, 1) * codes + biases.astype(np.float64).repeat(64, 1)
        assert ours <= rms(theirs - np.array(given.astype(mx.float32), np.float64)), name


def test_positions_are_the_resampled_table(before: dict[str, Raw], after: dict[str, Raw]) -> None:
    name = f"{VISION}embeddings.position_embedding.weight"
    old = dequantize(before, name).reshape(16, 16, 64)
    new = dequantize(after, name).reshape(12, 12, 64)
    centres = (np.arange(12) + 0.5) * 16 / 12 - 0.5
    low = np.floor(centres).astype(int)
    share = (centres - low)[:, None]
    high = np.minimum(low + 1, 15)
    rows = old[low] * (1 - share[:, None]) + old[high] * share[:, None]
    expected = rows[:, low] * (1 - share) + rows[:, high] * share
    assert rms(new - expected) < 0.1 * rms(expected)


def test_configs_agree_with_the_tensors(compressed: Path, after: dict[str, Raw]) -> None:
    model = config(compressed)
    text, vision = model["text_config"], model["vision_config"]
    widths = [after[f"{LAYERS}{layer}.mlp.gate_proj.weight"].shape[0] for layer in range(6)]
    assert text["per_layer_intermediate_sizes"] == widths == [512, 512, 384, 384, 384, 384]
    assert text["num_hidden_layers"] == 6
    assert model["vocab_pruning"]["compact_vocab_size"] == after[f"{TABLE}weight"].shape[0]
    assert model["vocab_size"] == text["vocab_size"] == after[f"{TABLE}token_map"].shape[0]
    assert vision["intermediate_size"] == 320
    assert vision["image_size"] == 168
    assert model["mm_tokens_per_image"] == text["mm_tokens_per_image"] == 9
    assert after[f"{VISION}embeddings.position_embedding.weight"].shape[0] == (168 // 14) ** 2
    preprocessor, processor = (config(compressed, f"{n}_config.json") for n in ("preprocessor", "processor"))
    assert preprocessor["size"] == {"height": 168, "width": 168}
    assert preprocessor["image_seq_length"] == processor["image_seq_length"] == 9
    assert model["quantization"] == {"group_size": 64, "bits": 4}


def test_split_files_hold_language_and_vision(compressed: Path) -> None:
    weight_map = config(compressed, "model.safetensors.index.json")["weight_map"]
    for name, file in weight_map.items():
        is_language = name.startswith("language_model.")
        assert file == ("language_model.safetensors" if is_language else "vision_model.safetensors")


def test_the_manifest_names_every_hash(compressed: Path, after: dict[str, Raw], plan: Plan) -> None:
    manifest = read_json(compressed / "surgery.json")
    assert set(manifest["tensors"]) == set(after)
    hashes = folder_hashes(compressed)
    assert manifest["files"] == {name: hashes[name] for name in manifest["files"]}
    assert manifest["plan_sha256"] == plan.sha256
    lossy = {name for name, entry in manifest["tensors"].items() if not entry["lossless"]}
    expected = {f"{VISION}embeddings.position_embedding.{role}" for role in ("weight", "scales", "biases")}
    for role in ("weight", "scales", "biases"):
        expected |= {f"{VISION}encoder.layers.{layer}.mlp.fc2.{role}" for layer in range(3)}
        expected |= {f"{LAYERS}{layer}.mlp.down_proj.{role}" for layer in range(2, 6)}
    assert lossy == expected


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_bytes_do_not_depend_on_threads(tiny: Path, compressed: Path, tmp_path: Path, threads: int) -> None:
    execute(plan_recipe(tiny), tmp_path / "output", threads=threads)
    assert folder_hashes(tmp_path / "output") == folder_hashes(compressed)


@pytest.mark.parametrize("tile_bytes", [1 << 12, 1 << 15])
def test_bytes_do_not_depend_on_the_tile_size(
    tiny: Path, tiny_tokenizer: Path, compressed: Path, tmp_path: Path, monkeypatch, tile_bytes: int
) -> None:
    random_weights = synthesis_plan("tiny", published_demo(), tiny_tokenizer)
    execute(random_weights, tmp_path / "source")
    for module in ("produce", "scores", "stream"):
        monkeypatch.setattr(f"gemma_surgery.surgery.{module}.TILE_BYTES", tile_bytes)
    execute(random_weights, tmp_path / "again")
    assert folder_hashes(tmp_path / "again") == folder_hashes(tmp_path / "source")
    execute(plan_recipe(tiny), tmp_path / "output")
    assert folder_hashes(tmp_path / "output") == folder_hashes(compressed)


def test_a_bf16_original_goes_straight_to_a_mobile_file(tiny_dense: Path, tmp_path: Path) -> None:
    execute(plan_recipe(tiny_dense, "mobile", SCALED), tmp_path / "output")
    before, after = read_all(tiny_dense), read_all(tmp_path / "output")
    name = f"{VISION}embeddings.patch_embedding.weight"
    assert after[name].shape == (64, 14, 14, 3)
    assert np.array_equal(after[name].values, before[name].values.transpose(0, 2, 3, 1))
    kept = np.flatnonzero(after[f"{TABLE}token_map"].values)
    wanted = before[f"{TABLE}weight"].values[kept]
    assert rms(dequantize(after, f"{TABLE}weight")[1:] - wanted) < 0.15 * rms(wanted)
    assert not dequantize(after, f"{TABLE}weight")[0].any()
    decoded = dequantize(after, f"{VISION}encoder.layers.0.mlp.fc2.weight")
    assert not decoded[:, 272:].any()
    gate = f"{LAYERS}3.mlp.gate_proj.weight"
    assert after[gate].shape == (384, 16)
    projection = "multi_modal_projector.mm_input_projection_weight"
    assert after[projection] == before[projection]
    assert config(tmp_path / "output")["quantization"] == {"group_size": 64, "bits": 4}


def requantized(before: dict[str, Raw], after: dict[str, Raw]) -> dict[str, np.ndarray]:
    """What each requantized matrix should hold, decoded from the source in float64."""
    wanted = {}
    for layer in range(3):
        name = f"{VISION}encoder.layers.{layer}.mlp.fc2.weight"
        wanted[name] = np.pad(before[name].values, ((0, 0), (0, 48)))
    for layer in range(2, 6):
        prefix = f"{LAYERS}{layer}.mlp."
        kept = kept_rows(before[f"{prefix}gate_proj.weight"], after[f"{prefix}gate_proj.weight"])
        wanted[f"{prefix}down_proj.weight"] = dequantize(before, f"{prefix}down_proj.weight")[:, kept]
    return wanted


def kept_rows(old: Raw, new: Raw) -> np.ndarray:
    position = {row.tobytes(): index for index, row in enumerate(old.rows)}
    return np.array([position[row.tobytes()] for row in new.rows])


def neurons_by_norm(before: dict[str, Raw], prefix: str, count: int) -> np.ndarray:
    gate, up, down = (value(before, f"{prefix}{name}_proj.weight") for name in ("gate", "up", "down"))
    score = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1) * np.linalg.norm(down, axis=0)
    return np.sort(np.argsort(-score, kind="stable")[:count])


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
