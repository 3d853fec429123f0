"""The demo model as a description, for checkpoints of its shape with other contents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx

from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.families.published import Published
from gemma_surgery.surgery.executor import execute
from gemma_surgery.synthesis import synthesis_plan

DOCUMENTS = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
IMAGE_SIZE, TOKENS_PER_IMAGE = 224, 16


def published_demo(quantized: bool = True) -> Published:
    """Config and side files, as `synth` wants them; the quantized form has a duplicate head."""
    folder = demo_model_path("bf16")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    if quantized:
        config["quantization"] = {"group_size": 64, "bits": 4}
    documents = {name: json.loads((folder / name).read_text("utf-8")) for name in DOCUMENTS}
    return Published(config, documents, quantized, duplicate_head=quantized)


def copy_tokenizer(target: Path) -> Path:
    """The tokenizer without its chat template: turns are written in Gemma's own format then."""
    source = demo_model_path("bf16")
    target.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "added_tokens.json"):
        shutil.copy(source / name, target)
    config = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    del config["chat_template"]
    (target / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return target


def copy_with_duplicate_head(target: Path) -> Path:
    """The 4-bit demo model as mlx-vlm converts: the tied table is stored a second time."""
    shutil.copytree(demo_model_path("4bit"), target)
    (target / "surgery.json").unlink(missing_ok=True)
    path = str(target / "model.safetensors")
    tensors = {name: mx.array(array) for name, array in mx.load(path).items()}
    for part in ("weight", "scales", "biases"):
        tensors[f"language_model.lm_head.{part}"] = tensors[f"language_model.model.embed_tokens.{part}"]
    mx.save_safetensors(path, tensors, {"format": "mlx"})
    return target


def random_checkpoint(target: Path, tokenizer: Path) -> Path:
    """The demo model's shape with random weights and the full context: its answers have no end."""
    published = published_demo()
    del published.config["text_config"]["max_position_embeddings"]
    execute(synthesis_plan("tiny", published, tokenizer), target)
    return target
