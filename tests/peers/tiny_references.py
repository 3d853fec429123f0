"""The package's toy model with random weights of the reference, and with a tokenizer: ready for surgery."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from comparing import Layout, prompt_tokens
from demo_checkpoints import published_demo
from reference_models import Checkpointed, cast_parameters, random_reference, save_released

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def make_tiny(
    folder: Path,
    tokenizer: Path,
    dtype: torch.dtype,
    head: bool = False,
    multimodal: bool = True,
    embedding_scale: float = 1.0,
) -> Checkpointed:
    """A checkpoint in the released layout with every side file.

    Args:
        folder: where it is saved.
        tokenizer: a folder with the toy model's tokenizer.
        dtype: of the stored weights.
        head: whether the tied table is stored a second time.
        multimodal: whether there is a vision tower.
        embedding_scale: factor on the table. Small, and a token is no longer followed by itself.
    """
    published = published_demo(quantized=False)
    config: dict = copy.deepcopy(dict(published.config)) | {"torch_dtype": DTYPE_NAMES[dtype]}
    if not multimodal:
        text = config["text_config"]
        config = text | {"architectures": ["Gemma3ForCausalLM"], "eos_token_id": [1, 106]}
    else:
        # Stated twice: mlx-lm reads the first, everyone else the second.
        config["vocab_size"] = config["text_config"]["vocab_size"]
    reference = random_reference(config)
    with torch.no_grad():
        reference.get_input_embeddings().weight.mul_(embedding_scale)
    if dtype != torch.float32:
        cast_parameters(cast_parameters(reference, dtype), torch.float32)
    save_released(reference, config, folder, dtype, head)
    documents = published.documents if multimodal else {}
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), "utf-8")
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return Checkpointed(folder, config, reference)


def tokens_among(source: Checkpointed, layout: Layout, kept: np.ndarray) -> np.ndarray:
    """Token ids of a layout whose text is made of kept tokens only."""
    tokens = prompt_tokens(source, layout)
    image = [source.config[f"{kind}_token_index"] for kind in ("image", "boi", "eoi")]
    return np.where(np.isin(tokens, image), tokens, kept[tokens % len(kept)]).astype(np.int32)
