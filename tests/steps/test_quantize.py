"""`quantize`: mixed bits, modes, what stays dense, and the config block that loaders read."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from compressing import compress_steps, plan_recipe, plan_steps, read_json
from independent import dequantize, read_all

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.surgery.anatomy import logical_matrices

QUANTIZE = '[[steps]]\nstep = "quantize"\n'
GATE = "language_model.model.layers.3.mlp.gate_proj"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_every_width_decodes_in_mlx(tiny_dense: Path, tmp_path: Path, bits: int, group_size: int) -> None:
    output = compress_steps(tiny_dense, tmp_path, f"{QUANTIZE}bits = {bits}\ngroup_size = {group_size}")
    assert read_json(output / "config.json")["quantization"] == {"group_size": group_size, "bits": bits}
    arrays = mx.load(str(output / "model.safetensors"))
    wanted = read_all(tiny_dense)[f"{GATE}.weight"].values
    parts = (arrays[f"{GATE}.{role}"] for role in ("weight", "scales", "biases"))
    decoded = mx.dequantize(*parts, group_size=group_size, bits=bits).astype(mx.float32)
    error = np.sqrt(np.square(np.array(decoded) - wanted).mean())
    assert error < 0.3 * np.ptp(wanted) / (2**bits - 1) + 0.0002
    independent = dequantize(read_all(output), f"{GATE}.weight", bits, group_size)
    assert np.abs(independent - np.array(decoded)).max() < 0.002


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_microscaling_modes_decode_in_mlx(tiny_dense: Path, tmp_path: Path, mode: str) -> None:
    output = compress_steps(tiny_dense, tmp_path, f'{QUANTIZE}mode = "{mode}"')
    block = read_json(output / "config.json")["quantization"]
    assert block["mode"] == mode
    arrays = mx.load(str(output / "model.safetensors"))
    decoded = mx.dequantize(arrays[f"{GATE}.weight"], arrays[f"{GATE}.scales"], **block).astype(mx.float32)
    wanted = read_all(tiny_dense)[f"{GATE}.weight"].values
    error = np.sqrt(np.mean((np.array(decoded) - wanted) ** 2) / np.mean(wanted**2))
    assert error < (0.04 if mode == "mxfp8" else 0.16)
    reopened = logical_matrices(open_checkpoint(output))[f"{GATE}.weight"]
    assert reopened.encoding.describe().endswith(mode)


def test_rules_mix_bits_and_are_kept_in_the_config(tiny_dense: Path, tmp_path: Path) -> None:
    toml = (
        f'{QUANTIZE}keep = ["*.o_proj.weight"]\n'
        'rules = [{ match = "*.down_proj.weight", bits = 6 }, { match = "*embed_tokens.weight", bits = 8, '
        "group_size = 32 }]"
    )
    output = compress_steps(tiny_dense, tmp_path, toml)
    config = read_json(output / "config.json")
    block = config["quantization"]
    assert config["quantization_config"] == block
    assert (block["bits"], block["group_size"]) == (4, 64)
    assert block["language_model.model.layers.0.mlp.down_proj"] == {"group_size": 64, "bits": 6}
    assert block["language_model.model.embed_tokens"] == {"group_size": 32, "bits": 8}
    encodings = {n: m.encoding.describe() for n, m in logical_matrices(open_checkpoint(output)).items()}
    assert encodings["language_model.model.layers.5.mlp.down_proj.weight"] == "6-bit g64"
    assert encodings["language_model.model.embed_tokens.weight"] == "8-bit g32"
    assert encodings["language_model.model.layers.5.self_attn.o_proj.weight"] == "BF16"
    assert encodings[f"{GATE}.weight"] == "4-bit g64"


def test_symmetric_keeps_zeros_exact(tiny_dense: Path, tmp_path: Path) -> None:
    output = compress_steps(tiny_dense, tmp_path, f'{QUANTIZE}mode = "symmetric"')
    tensors = read_all(output)
    assert np.array_equal(tensors[f"{GATE}.biases"].values, -8 * tensors[f"{GATE}.scales"].values)
    assert "mode" not in read_json(output / "config.json")["quantization"]


def test_what_stays_dense_is_said(tiny_dense: Path, tmp_path: Path) -> None:
    plan = plan_steps(tiny_dense, tmp_path, QUANTIZE)
    notes = " ".join(plan.steps[0].notes)
    assert "3 kept dense: width 272 of `vision_tower" in notes
    assert "fc2.weight` is not divisible by the group size" in notes


def test_quantized_tensors_keep_their_codes_unless_asked(tiny: Path, tmp_path: Path) -> None:
    assert (
        plan_steps(tiny, tmp_path, f"{QUANTIZE}bits = 8").output_bytes
        == plan_steps(tiny, tmp_path, QUANTIZE).output_bytes
    )
    again = plan_steps(tiny, tmp_path, f"{QUANTIZE}bits = 8\nrequantize = true")
    assert not again.steps[0].lossless
    assert again.output_bytes > again.source_bytes


def test_a_plan_of_8_bits_decodes_closer_than_4(tiny_dense: Path, tmp_path: Path) -> None:
    wanted = read_all(tiny_dense)[f"{GATE}.weight"].values
    errors = []
    for bits in (4, 8):
        output = compress_steps(tiny_dense, tmp_path, f"{QUANTIZE}bits = {bits}")
        errors.append(np.square(dequantize(read_all(output), f"{GATE}.weight", bits) - wanted).mean())
    assert errors[1] < errors[0] / 50


def test_values_that_are_not_finite_are_refused(tiny_dense: Path, tmp_path: Path) -> None:
    import shutil

    from gemma_surgery.errors import SurgeryError

    source = tmp_path / "source"
    shutil.copytree(tiny_dense, source)
    tensor = open_checkpoint(source).tensors[f"{GATE}.weight"]
    with (source / tensor.file).open("r+b") as file:
        file.seek(tensor.start + 1000)
        file.write(b"\x80\x7f")
    with pytest.raises(SurgeryError, match=f"cannot encode `{GATE}.weight`"):
        compress_steps(source, tmp_path, QUANTIZE)
    assert not (tmp_path / "output").exists()


def test_a_resampled_table_is_called_inexact_even_where_quantization_made_it_so_before(
    tiny_dense: Path,
) -> None:
    lossless = {step.step: step.lossless for step in plan_recipe(tiny_dense).steps}
    assert not lossless["quantize"]
    assert not lossless["reduce_resolution"]
    # Rows and layers go as they are, whatever is stored in the end.
    assert lossless["prune_vocabulary"]
    assert lossless["drop_layers"]
