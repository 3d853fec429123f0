"""The reference's processor: Pillow image processor, tokenizer, and the two together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import AutoTokenizer, Gemma3Processor, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

# What the package's toy tokenizer has no file for.
TOY_TOKENS = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}


def image_processor(size: int, **settings: object) -> Gemma3ImageProcessorPil:
    return Gemma3ImageProcessorPil(size={"height": size, "width": size}, **settings)


def reference_pixels(images: Sequence[Image.Image], size: int, **settings: object) -> np.ndarray:
    """Pixels `[N, S, S, 3]` of every block, crops included."""
    processed = image_processor(size, **settings)(list(images), return_tensors="np")
    return np.asarray(processed["pixel_values"]).transpose(0, 2, 3, 1)


def toy_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=TOY_TOKENS,
    )


def real_tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


def processor(
    tokenizer: PreTrainedTokenizerBase,
    size: int,
    tokens_per_image: int,
    template: str,
    **settings: object,
) -> Gemma3Processor:
    images = image_processor(size, **settings)
    return Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=tokens_per_image)


def random_picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A picture with smooth areas, edges and noise, and with transparency where the mode has it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    levels = np.stack(
        [
            columns * 255 // max(width - 1, 1),
            rows * 255 // max(height - 1, 1),
            (rows // 7 + columns // 5) % 2 * 255,
            (columns * 3 + rows) % 256,
        ],
        axis=-1,
    )
    noisy = np.clip(levels + rng.integers(-20, 21, levels.shape), 0, 255).astype(np.uint8)
    picture = Image.fromarray(noisy, "RGBA")
    if mode == "P with a transparent colour":
        picture = picture.convert("RGB").convert("P")
        picture.info["transparency"] = int(np.asarray(picture).flat[0])
        return picture
    if mode in ("RGBA", "LA", "La", "PA"):
        return picture.convert("LA").convert(mode) if mode in ("La", "PA") else picture.convert(mode)
    return picture.convert("RGB").convert(mode)
