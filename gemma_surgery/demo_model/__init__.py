"""The small trained Gemma 3 that ships with the package, and the generators of its world."""

from __future__ import annotations

from pathlib import Path

from gemma_surgery.errors import SurgeryError

FORMS = ("bf16", "4bit")
# `mobile`, scaled from 34 layers to 8 and from 896 pixels to 224.
SCALED = ("drop_layers.last=1", "reduce_resolution.image_size=168", "prune_neurons.protect_first=3")


def demo_model_path(form: str) -> Path:
    """Folder of the demo model: `bf16` as trained (Hugging Face layout) or `4bit` (MLX layout).

    Raises:
        SurgeryError: no such form, or this installation carries no such folder.
    """
    if form not in FORMS:
        raise SurgeryError("demo_model", f"need a form, {' or '.join(f'`{f}`' for f in FORMS)}, got `{form}`")
    folder = Path(__file__).parent / form
    if not (folder / "config.json").is_file():
        raise SurgeryError(
            "demo_model",
            f"need `config.json` of the demo model, got no such file in `{folder}`",
            "reinstall gemma-surgery, or train the model with `tools/train_tiny.py`",
        )
    return folder
