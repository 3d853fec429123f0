"""What running a Gemma 3 needs to know of config.json, with the reference's defaults filled in.

Defaults: `Gemma3TextConfig` and `SiglipVisionConfig` of transformers. Both spellings of the rotary settings
are read: `rope_scaling` with `rope_theta` and `rope_local_base_freq` (as released), and `rope_parameters`
(as transformers 5 saves it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3

GLOBAL_THETA = 1_000_000.0
LOCAL_THETA = 10_000.0
GELU_TANH = ("gelu_pytorch_tanh", "gelu_tanh")

Config = Mapping[str, Json]


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of one kind of layer: frequencies `theta ** (-2i / D) / factor`."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True)
class TextConfig:
    """The text decoder.

    Attributes:
        mlp_widths: F per layer.
        is_global: whether each layer attends to everything before it, not only within `window`.
        window: tokens that a local layer sees, the current one included.
        vocab_size: ids V that the tokenizer may give.
        attention_scale: factor on `q . k`.
        final_softcap: `c` of `c * tanh(logits / c)`, or None; no released Gemma 3 has one.
    """

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_widths: tuple[int, ...]
    is_global: tuple[bool, ...]
    window: int
    vocab_size: int
    max_position_embeddings: int
    norm_eps: float
    attention_scale: float
    global_rope: Rope
    local_rope: Rope
    final_softcap: float | None

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.mlp_widths)


@dataclass(frozen=True)
class VisionConfig:
    """The SigLIP tower and the pooling behind it.

    Attributes:
        image_size: side of the square input in pixels.
        tokens_per_image: image tokens P that the projector pools the patch grid to.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    image_size: int
    patch_size: int
    num_channels: int
    norm_eps: float
    tokens_per_image: int

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ModelConfig:
    """A whole checkpoint.

    Attributes:
        vision: None for text-only models, and for folders that hold the language part of a vision model.
        eos_token_ids: ids that end a turn, out of config.json and generation_config.json together.
    """

    text: TextConfig
    vision: VisionConfig | None
    bos_token_id: int
    pad_token_id: int
    eos_token_ids: tuple[int, ...]
    image_token_id: int | None = None
    boi_token_id: int | None = None
    eoi_token_id: int | None = None


def read_model_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model that config.json and generation_config.json describe.

    Raises:
        SurgeryError: another family, a value of the wrong kind, or a feature that no Gemma 3 has.
    """
    family = Gemma3(checkpoint.config)
    has_vision = family.is_multimodal and (checkpoint.closed_files or family.has_vision(checkpoint.tensors))
    ids = family.token_ids(_generation_config(checkpoint))
    image = {
        key: next(iter(ids.get(f"{key}_token_index", []) or ids.get(f"{key}_token_id", [])), None)
        for key in ("image", "boi", "eoi")
    }
    return ModelConfig(
        text=_text_config(family),
        vision=_vision_config(family) if has_vision else None,
        bos_token_id=next(iter(ids.get("bos_token_id", [])), 2),
        pad_token_id=next(iter(ids.get("pad_token_id", [])), 0),
        eos_token_ids=tuple(ids.get("eos_token_id", [1])),
        image_token_id=image["image"],
        boi_token_id=image["boi"],
        eoi_token_id=image["eoi"],
    )


def _generation_config(checkpoint: Checkpoint) -> Config:
    name = "generation_config.json"
    return checkpoint.json_file(name) if name in checkpoint.side_files else {}


def _text_config(family: Gemma3) -> TextConfig:
    config = family.text_config
    for key in ("attn_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        if config.get(key):
            _refuse(f"need no `{key}`, as in every Gemma 3, got {config[key]!r} in `config.json`")
    _check_activation(config, "hidden_activation")
    global_rope, local_rope = _ropes(config)
    scalar = _number(config, "query_pre_attn_scalar", 256.0)
    softcap = config.get("final_logit_softcapping")
    heads, kv_heads = family.text("num_attention_heads"), family.text("num_key_value_heads")
    if heads % kv_heads:
        _refuse(f"need heads in whole groups per kv head, got {heads} heads and {kv_heads} in `config.json`")
    return TextConfig(
        hidden_size=family.text("hidden_size"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=family.text("head_dim"),
        mlp_widths=tuple(family.mlp_widths),
        is_global=tuple(kind == "full_attention" for kind in family.layer_types),
        window=_count(config, "sliding_window", 4096),
        vocab_size=family.text("vocab_size"),
        max_position_embeddings=_count(config, "max_position_embeddings", 131072),
        norm_eps=_number(config, "rms_norm_eps", 1e-6),
        attention_scale=scalar**-0.5,
        global_rope=global_rope,
        local_rope=local_rope,
        final_softcap=None if softcap is None else _number(config, "final_logit_softcapping", 0.0),
    )


def _vision_config(family: Gemma3) -> VisionConfig:
    config = family.vision_config
    _check_activation(config, "hidden_act")
    return VisionConfig(
        hidden_size=family.vision("hidden_size"),
        num_layers=family.vision("num_hidden_layers"),
        num_heads=family.vision("num_attention_heads"),
        image_size=family.vision("image_size"),
        patch_size=family.vision("patch_size"),
        num_channels=family.vision("num_channels"),
        norm_eps=_number(config, "layer_norm_eps", 1e-6),
        tokens_per_image=family.tokens_per_image,
    )


def _ropes(config: Config) -> tuple[Rope, Rope]:
    """Rotary settings of global and of local layers."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return (
            _rope(config.get("rope_scaling"), _number(config, "rope_theta", GLOBAL_THETA), "rope_scaling"),
            Rope(_number(config, "rope_local_base_freq", LOCAL_THETA)),
        )
    # An intermediate spelling has one flat block for the global layers.
    nested = isinstance(parameters.get("full_attention"), dict)
    for_global = parameters["full_attention"] if nested else parameters
    for_local = parameters.get("sliding_attention") if nested else None
    local_theta = _number(config, "rope_local_base_freq", LOCAL_THETA)
    return (
        _rope(for_global, _number(config, "rope_theta", GLOBAL_THETA), "rope_parameters"),
        _rope(for_local, local_theta, "rope_parameters"),
    )


def _rope(block: Json, theta: float, where: str) -> Rope:
    if block is None:
        return Rope(theta)
    if not isinstance(block, dict):
        _refuse(f"need an object under `{where}` in `config.json`, got {block!r}")
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in ("default", "linear"):
        _refuse(f"need rotary scaling `default` or `linear`, got {kind!r} under `{where}` in `config.json`")
    factor = _number(block, "factor", 1.0) if kind == "linear" else 1.0
    return Rope(_number(block, "rope_theta", theta), factor)


def _check_activation(config: Config, key: str) -> None:
    name = config.get(key, GELU_TANH[0])
    if name not in GELU_TANH:
        _refuse(f"need activation `{GELU_TANH[0]}`, got {name!r} under `{key}` in `config.json`")


def _number(config: Config, key: str, default: float) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        _refuse(f"need a positive number in `{key}` of `config.json`, got {value!r}")
    return float(value)


def _count(config: Config, key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        _refuse(f"need a positive integer in `{key}` of `config.json`, got {value!r}")
    return value


def _refuse(message: str) -> NoReturn:
    raise SurgeryError("config", message)
