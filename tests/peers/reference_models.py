"""Random-weight Gemma 3 checkpoints made by the reference implementation and saved as released.

Weights are scaled so that every rule shows in the logits: attention is peaked, norm weights differ from zero,
and keys and vision activations are small enough that the epsilon of a norm matters.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

# E = 64: its square root is exact in bfloat16, to which MLX's engines round it for every checkpoint.
TEXT = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 40,
    "sliding_window": 16,
    "max_position_embeddings": 4096,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "vocab_size": 301,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 48,
    # 16 x prime, as 4304 = 16 x 269.
    "intermediate_size": 16 * 5,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "image_size": 112,
    "patch_size": 14,
    "vision_use_head": False,
}
TOP = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "mm_tokens_per_image": 16,
    "boi_token_index": 297,
    "eoi_token_index": 298,
    "image_token_index": 299,
    "eos_token_id": [1, 106],
}
KEY_SCALE = 1e-3
VISION_SCALE = 1e-2

Settings = dict[str, object]


@dataclass(frozen=True, eq=False)
class Checkpointed:
    """A checkpoint on disk, and the reference that has its weights in float32."""

    folder: Path
    config: dict
    reference: torch.nn.Module

    @property
    def image_size(self) -> int:
        return self.config["vision_config"]["image_size"]

    @property
    def tokens_per_image(self) -> int:
        return self.config["mm_tokens_per_image"]

    @property
    def text(self) -> dict:
        return self.config.get("text_config", self.config)


def make_checkpoint(
    folder: Path,
    *,
    text: Settings | None = None,
    vision: Settings | None = None,
    top: Settings | None = None,
    multimodal: bool = True,
    dtype: torch.dtype = torch.float32,
    head: bool = False,
    seed: int = 0,
) -> Checkpointed:
    """A checkpoint whose config departs from the base only in the given keys.

    Args:
        folder: where it is saved.
        text, vision, top: keys of `text_config`, `vision_config` and of the top level.
        multimodal: whether there is a vision tower; else the config is the text config alone.
        dtype: of the stored weights; the reference computes with the same values in float32.
        head: whether a copy of the embedding is stored as `lm_head.weight`.
        seed: of the weights.
    """
    config = released_config(text, vision, top, multimodal)
    reference = random_reference(config, seed)
    if dtype != torch.float32:
        cast_parameters(cast_parameters(reference, dtype), torch.float32)
    save_released(reference, config, folder, dtype, head)
    return Checkpointed(folder, config, reference)


def cast_parameters(reference: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Cast like `from_pretrained(dtype=...)`: rotary frequencies are buffers and stay in float32."""
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.data = parameter.data.to(dtype)
    return reference


def with_stored_scale(reference: torch.nn.Module) -> torch.nn.Module:
    """A copy whose square root of E is rounded to bfloat16: what bfloat16 weights were trained with."""
    rounded = copy.deepcopy(reference)
    embedding = rounded.get_input_embeddings()
    embedding.embed_scale.copy_(embedding.embed_scale.bfloat16().float())
    return rounded


def released_config(
    text: Settings | None = None,
    vision: Settings | None = None,
    top: Settings | None = None,
    multimodal: bool = True,
) -> dict:
    if not multimodal:
        architecture = {"architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106]}
        return copy.deepcopy(architecture | TEXT | (text or {}))
    parts = {"text_config": TEXT | (text or {}), "vision_config": VISION | (vision or {})}
    return copy.deepcopy(TOP | parts | (top or {}))


def build_reference(config: dict) -> torch.nn.Module:
    """The reference implementation of a config, in float32, its weights still to be set."""
    config = copy.deepcopy(config)
    if config["model_type"] == "gemma3":
        return Gemma3ForConditionalGeneration(Gemma3Config(**config)).float().eval()
    return Gemma3ForCausalLM(Gemma3TextConfig(**config)).float().eval()


def random_reference(config: dict, seed: int = 0) -> torch.nn.Module:
    reference = build_reference(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            mean, deviation = _distribution(name, parameter)
            parameter.copy_(mean + deviation * torch.randn(parameter.shape, generator=generator))
    return reference


def _distribution(name: str, parameter: torch.Tensor) -> tuple[float, float]:
    in_vision = "vision_tower" in name
    if "layer_norm" in name or "layernorm" in name or name.endswith("norm.weight"):
        if "q_norm" in name or "k_norm" in name:
            return 0.6, 0.4
        return (1.0 if in_vision and name.endswith("weight") else 0.0), 0.3
    deviation = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.3
    if name.endswith("mm_input_projection_weight"):
        deviation = parameter.shape[0] ** -0.5
    if in_vision and ("embedding" in name or "out_proj" in name or "fc2" in name):
        return 0.0, deviation * VISION_SCALE
    return 0.0, deviation * (KEY_SCALE if "k_proj" in name and not in_vision else 1.0)


def released_names(reference: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The reference's weights under the names of the released files, without the tied head."""
    tensors = {}
    for name, tensor in reference.state_dict().items():
        if name == "lm_head.weight":
            continue
        released = name
        if isinstance(reference, Gemma3ForConditionalGeneration):
            released = name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)
            released = released.replace("vision_tower.", "vision_tower.vision_model.", 1)
        tensors[released] = tensor
    return tensors


def save_released(
    reference: torch.nn.Module,
    config: dict,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    head: bool = False,
) -> None:
    """Write config.json in the released spelling and one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.to(dtype).clone().contiguous() for name, value in released_names(reference).items()
    }
    if head:
        embedding = next(name for name in tensors if name.endswith("embed_tokens.weight"))
        prefix = "language_model." if config["model_type"] == "gemma3" else ""
        tensors[f"{prefix}lm_head.weight"] = tensors[embedding].clone()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write_config(folder, config)


def write_config(folder: Path, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")


def with_config(source: Checkpointed, folder: Path, **sections: Settings) -> Path:
    """The same weights under a config with keys of `text`, `vision` and `top` set or, for None, dropped."""
    config = copy.deepcopy(source.config)
    places = {"text": config.get("text_config", config), "vision": config.get("vision_config"), "top": config}
    for section, changes in sections.items():
        for key, value in changes.items():
            if value is None:
                places[section].pop(key, None)
            else:
                places[section][key] = value
    return linked(source.folder, folder, config)


def linked(source: Path, folder: Path, config: dict) -> Path:
    """A folder with another config.json and links to everything else."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    write_config(folder, config)
    return folder
