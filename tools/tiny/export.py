"""The trained weights as a Hugging Face folder, spelt as the released checkpoints spell theirs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

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
    "preprocessor_config.json": {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_pan_and_scan": None,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Gemma3ImageProcessor",
        "image_seq_length": TOKENS_PER_IMAGE,
        "image_std": [0.5, 0.5, 0.5],
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
        "processor_class": "Gemma3Processor",
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    },
    "processor_config.json": {"image_seq_length": TOKENS_PER_IMAGE, "processor_class": "Gemma3Processor"},
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
