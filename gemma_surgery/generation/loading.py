"""Opening a checkpoint to run it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import Gemma3Model, load_model

if TYPE_CHECKING:
    import mlx.core as mx


def load(
    model: str | Path,
    *,
    dtype: mx.Dtype | None = None,
    activations: str = "full",
    revision: str | None = None,
) -> tuple[Gemma3Model, Tokenizer]:
    """Load a checkpoint and its tokenizer; vision weights wait for the first image.

    Args:
        model: a folder or a Hugging Face repository id.
        dtype: of activations; by default as the checkpoint was stored.
        activations: bits of them in products with quantized weights on a CPU: ``full``, ``int16`` or
            ``int8``, see `gemma_surgery.ops.quantized_linear`.
        revision: branch, tag or commit of a repository id.

    Raises:
        SurgeryError: no such checkpoint, another family, config and tensors disagree, or no tokenizer.
    """
    loaded = load_model(model, dtype=dtype, activations=activations, revision=revision)
    return loaded, Tokenizer.load(loaded.checkpoint)
