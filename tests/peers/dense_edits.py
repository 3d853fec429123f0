"""The edits of a recipe applied to the reference's own weights, in torch and without any code of ours."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from reference_models import Checkpointed, build_reference

TEXT, VISION = "model.language_model.", "model.vision_tower."


@dataclass(frozen=True)
class Edits:
    """What is done; None leaves that part alone."""

    drop_last: int | None = None
    image_size: int | None = None
    vision_multiple: int | None = None
    protect_first: int | None = None
    max_ratio: float = 0.25


def edited(source: Checkpointed, edits: Edits) -> tuple[dict, torch.nn.Module]:
    """The config and the reference after the edits; pruned neurons are zeroed, not removed.

    The vocabulary stays whole: rows that are not looked at change nothing.
    """
    config = copy.deepcopy(source.config)
    weights = {name: value.clone() for name, value in source.reference.state_dict().items()}
    if edits.drop_last is not None:
        left = config["text_config"]["num_hidden_layers"] - edits.drop_last
        config["text_config"]["num_hidden_layers"] = left
        weights = {name: value for name, value in weights.items() if _layer(name) < left}
    if edits.image_size is not None:
        _resample(weights, config, edits.image_size)
    if edits.vision_multiple is not None:
        _pad_vision(weights, config, edits.vision_multiple)
    if edits.protect_first is not None:
        for layer in range(edits.protect_first, config["text_config"]["num_hidden_layers"]):
            _silence_neurons(weights, f"{TEXT}layers.{layer}.mlp.", edits.max_ratio)
    reference = build_reference(config)
    reference.load_state_dict(weights)
    return config, reference


def _layer(name: str) -> int:
    return int(name.removeprefix(f"{TEXT}layers.").split(".")[0]) if name.startswith(f"{TEXT}layers.") else -1


def _resample(weights: dict[str, torch.Tensor], config: dict, image_size: int) -> None:
    name = f"{VISION}embeddings.position_embedding.weight"
    vision = config["vision_config"]
    before, after = vision["image_size"] // vision["patch_size"], image_size // vision["patch_size"]
    grid = weights[name].reshape(before, before, -1).permute(2, 0, 1)[None]
    small = F.interpolate(grid, (after, after), mode="bilinear", align_corners=False)
    weights[name] = small[0].permute(1, 2, 0).reshape(after * after, -1)
    weights.pop(f"{VISION}embeddings.position_ids", None)
    vision["image_size"] = image_size
    pooling = before // math.isqrt(config["mm_tokens_per_image"])
    config["mm_tokens_per_image"] = (after // pooling) ** 2


def _pad_vision(weights: dict[str, torch.Tensor], config: dict, multiple: int) -> None:
    width = config["vision_config"]["intermediate_size"]
    missing = -width % multiple
    below, behind = (0, 0, 0, missing), (0, missing)
    padding = {".fc1.weight": below, ".fc1.bias": behind, ".fc2.weight": behind}
    for name, value in weights.items():
        for ending, sides in padding.items():
            if name.startswith(VISION) and name.endswith(ending):
                weights[name] = F.pad(value, sides)
    config["vision_config"]["intermediate_size"] = width + missing


def _silence_neurons(weights: dict[str, torch.Tensor], prefix: str, max_ratio: float) -> None:
    """Keep the neurons with the largest product of weight norms, a multiple of 64 of them."""
    gate, up, down = (weights[f"{prefix}{part}_proj.weight"] for part in ("gate", "up", "down"))
    scores = gate.double().norm(dim=1) * up.double().norm(dim=1) * down.double().norm(dim=0)
    keep = math.ceil((1 - max_ratio) * len(scores) / 64) * 64
    lost = scores.argsort(descending=True)[keep:]
    gate[lost], up[lost], down[:, lost] = 0, 0, 0
