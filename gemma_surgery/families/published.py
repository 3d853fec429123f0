"""Configs and side files of the published Gemma 3 checkpoints, to synthesize their exact shapes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.errors import SurgeryError

JsonObject = dict[str, Json]

# Sources: the released configs as mirrored in public test fixtures, and gemma_pytorch. Columns: hidden,
# layers, MLP width, heads, kv heads, head dim, query scalar, window, linear rope factor, vision tower.
TEXT_SHAPES: dict[str, tuple[int, int, int, int, int, int, int, int, float | None, bool]] = {
    "270m": (640, 18, 2048, 4, 1, 256, 256, 512, None, False),
    "1b": (1152, 26, 6912, 4, 1, 256, 256, 512, None, False),
    "4b": (2560, 34, 10240, 8, 4, 256, 256, 1024, 8.0, True),
    "12b": (3840, 48, 15360, 16, 8, 256, 256, 1024, 8.0, True),
    "27b": (5376, 62, 21504, 32, 16, 128, 168, 1024, 8.0, True),
}
MULTIMODAL_ROWS = 262208
TEXT_ONLY_ROWS = 262144
NAME = re.compile(r"gemma-3-(270m|1b|4b|12b|27b)-(it|pt)(?:-qat)?(?:-(4bit|bf16))?")
QUANTIZATION: JsonObject = {"group_size": 64, "bits": 4}


@dataclass(frozen=True)
class Published:
    """One published checkpoint's description.

    Attributes:
        config: config.json.
        documents: the JSON side files.
        quantized: MLX 4-bit layout, else Hugging Face bf16.
        duplicate_head: whether the conversion stored the tied table a second time as `lm_head`.
    """

    config: JsonObject
    documents: dict[str, JsonObject]
    quantized: bool
    duplicate_head: bool


def published(name: str) -> Published:
    """The description of e.g. `gemma-3-4b-it-qat-4bit` or `gemma-3-1b-it`.

    Raises:
        SurgeryError: no such checkpoint.
    """
    match = NAME.fullmatch(name)
    if match is None:
        raise SurgeryError(
            "synth",
            f"need a shape like `gemma-3-4b-it-qat-4bit` or `gemma-3-4b-it`, got `{name}`",
            f"sizes: {', '.join(TEXT_SHAPES)}; a name ending in -4bit is MLX 4-bit, any other bf16",
        )
    size, instruct, form = match[1], match[2] == "it", match[3]
    quantized = form == "4bit"
    multimodal = TEXT_SHAPES[size][-1]
    config = _multimodal_config(size) if multimodal else _text_only_config(size)
    if quantized:
        config["quantization"] = dict(QUANTIZATION)
    documents: dict[str, JsonObject] = {"generation_config.json": _generation_config(instruct)}
    if multimodal:
        documents["preprocessor_config.json"] = _preprocessor_config(896, 256)
        documents["processor_config.json"] = {"image_seq_length": 256, "processor_class": "Gemma3Processor"}
        documents["added_tokens.json"] = {"<image_soft_token>": 262144}
    return Published(config, documents, quantized, duplicate_head=quantized and multimodal)


def vision_documents(image_size: int, tokens_per_image: int) -> dict[str, JsonObject]:
    """Processor files for an image size in pixels and a number of image tokens."""
    return {
        "preprocessor_config.json": _preprocessor_config(image_size, tokens_per_image),
        "processor_config.json": {"image_seq_length": tokens_per_image, "processor_class": "Gemma3Processor"},
    }


def _text_keys(size: str) -> JsonObject:
    hidden, layers, width, heads, kv_heads, head_dim, scalar, window, factor, _ = TEXT_SHAPES[size]
    keys: JsonObject = {
        "hidden_size": hidden,
        "intermediate_size": width,
        "model_type": "gemma3_text",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": scalar,
        "sliding_window": window,
    }
    if factor is not None:
        keys["rope_scaling"] = {"factor": factor, "rope_type": "linear"}
    return keys


def _multimodal_config(size: str) -> JsonObject:
    text = _text_keys(size)
    if size == "4b":
        # As released: these equal the class defaults and are left out.
        for key in ("num_attention_heads", "num_key_value_heads", "head_dim", "query_pre_attn_scalar"):
            del text[key]
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
            "vision_use_head": False,
        },
    }


def _text_only_config(size: str) -> JsonObject:
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": [1, 106],
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "max_position_embeddings": 32768,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000,
        "rope_theta": 1000000,
        "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vocab_size": TEXT_ONLY_ROWS,
        **_text_keys(size),
    }


def _generation_config(instruct: bool) -> JsonObject:
    return {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        "do_sample": True,
        "eos_token_id": [1, 106] if instruct else 1,
        "pad_token_id": 0,
        "top_k": 64,
        "top_p": 0.95,
    }


def _preprocessor_config(image_size: int, tokens_per_image: int) -> JsonObject:
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": tokens_per_image,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": image_size, "width": image_size},
    }
