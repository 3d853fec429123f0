"""The reference filled with what a file of ours holds, decoded by MLX's own `dequantize`."""

from __future__ import annotations

import copy
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
from compressing import read_json
from reference_models import build_reference

OURS_ONLY = ("vocab_pruning", "quantization", "quantization_config")


def reference_of_file(folder: Path) -> tuple[dict, torch.nn.Module]:
    """Config and reference in float32 of a compressed folder.

    Kept rows return to their ids, the others are zero; narrow layers are padded with zero neurons to the
    widest one.
    """
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in OURS_ONLY}
    text = config["text_config"]
    widths = text.pop("per_layer_intermediate_sizes", None)
    text["intermediate_size"] = max(widths or [text["intermediate_size"]])
    values = decoded(folder)
    reference = build_reference(copy.deepcopy(config))
    # Views of the parameters; the tied head is the table itself.
    weights = reference.state_dict()
    token_map = values.pop("language_model.model.embed_tokens.token_map", None)
    head = values.pop("language_model.lm_head.weight", None)
    table = values["language_model.model.embed_tokens.weight"]
    assert head is None or np.array_equal(head, table)
    if token_map is not None:
        values["language_model.model.embed_tokens.weight"] = spread(table, token_map)
    with torch.no_grad():
        for name, value in values.items():
            target = weights[reference_name(name)]
            transposed = name.endswith("patch_embedding.weight") and value.shape != tuple(target.shape)
            stored = torch.from_numpy(value.transpose(0, 3, 1, 2).copy() if transposed else value)
            target.zero_()
            target[tuple(slice(0, size) for size in stored.shape)] = stored
    return config, reference


def spread(table: np.ndarray, token_map: np.ndarray) -> np.ndarray:
    """Kept rows back at their ids, zero elsewhere."""
    ids = np.flatnonzero(token_map)
    whole = np.zeros((len(token_map), table.shape[1]), np.float32)
    whole[ids] = table[token_map[ids]]
    return whole


def decoded(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a folder by its released name: float32, integers as they are."""
    block = read_json(folder / "config.json").get("quantization", {})
    arrays: dict[str, mx.array] = {}
    for file in sorted(folder.glob("*.safetensors")):
        arrays |= mx.load(str(file))
    values = {}
    for name, array in arrays.items():
        stem, _, role = name.rpartition(".")
        if role in ("scales", "biases") and f"{stem}.scales" in arrays:
            continue
        if role == "weight" and f"{stem}.scales" in arrays:
            packing = block.get(stem, {key: block[key] for key in ("group_size", "bits")})
            # In float32: `dequantize` rounds to the dtype of the scales.
            parts = (arrays[f"{stem}.{part}"].astype(mx.float32) for part in ("scales", "biases"))
            values[name] = np.array(mx.dequantize(array, *parts, **packing))
        else:
            values[name] = np.array(array if array.dtype == mx.int32 else array.astype(mx.float32))
    return values


def reference_name(name: str) -> str:
    """A released tensor name as the reference's state dict has it."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return "model." + name.replace("vision_tower.vision_model.", "vision_tower.", 1)
