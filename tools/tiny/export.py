"""The trained weights as a Hugging Face folder, spelt as the released checkpoints spell theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from gemma_surgery.families.published import vision_documents
from tiny.anatomy import CONFIG, END_OF_TURN, IMAGE_SIZE, TOKENS_PER_IMAGE

# Names in memory (transformers 5) -> names on disk.
PREFIXES = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
DOCUMENTS: dict[str, dict] = {
    "config.json": CONFIG,
    "generation_config.json": {
        "bos_token_id": 2,
        "cache_implementation": "hybrid",
        # The tasks have one right answer: greedy unless asked otherwise.
        "do_sample": False,
        "eos_token_id": [1, END_OF_TURN],
        "pad_token_id": 0,
    },
    **vision_documents(IMAGE_SIZE, TOKENS_PER_IMAGE),
}


def write_model(state: dict[str, torch.Tensor], tokenizer: Path, folder: Path) -> None:
    """Write weights in bfloat16, config and side files to `folder`; `tokenizer` is copied in."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in sorted(state.items()):
        prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
        if prefix is None:
            # The tied head is the table once more.
            assert name == "lm_head.weight", name
            continue
        tensors[PREFIXES[prefix] + name.removeprefix(prefix)] = value.bfloat16().contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    for name, document in DOCUMENTS.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    for source in sorted(tokenizer.iterdir()):
        shutil.copyfile(source, folder / source.name)
