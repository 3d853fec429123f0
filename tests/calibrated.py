"""Profiles of made-up inputs of down_proj and made-up heads, whose statistics NumPy computes directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors.numpy import save_file

from gemma_surgery.calibration import profile
from gemma_surgery.checkpoint.model_folder import open_checkpoint

LAYERS = "language_model.model.layers."
NUM_LAYERS, WIDTH, HEADS = 8, 512, 4
SAMPLES, TOKENS = 6, 160
# As many inputs as it takes for correlations to count in full.
ENOUGH = 8 * WIDTH


def down_proj(layer: int) -> str:
    return f"{LAYERS}{layer}.mlp.down_proj"


@dataclass
class MadeUp:
    """Inputs `[samples, tokens, F]` per decoder layer and the statistics that a profile states of them."""

    inputs: dict[int, np.ndarray] = field(default_factory=dict)
    statistics: dict[str, np.ndarray] = field(default_factory=dict)

    def hessian(self, layer: int) -> np.ndarray:
        x = self.inputs[layer].reshape(-1, WIDTH)
        return x.T @ x / len(x)

    def mean(self, layer: int) -> np.ndarray:
        return self.inputs[layer].mean(axis=1).mean(axis=0)

    def fluctuation(self, layer: int) -> np.ndarray:
        """FLAP's running form, sample by sample."""
        mean, fluctuation = np.zeros(WIDTH), np.zeros(WIDTH)
        for number, x in enumerate(self.inputs[layer], 1):
            mean = mean * (number - 1) / number + x.mean(axis=0) / number
            if number > 1:
                fluctuation = fluctuation * (number - 2) / (number - 1)
                fluctuation = fluctuation + np.square(x - mean).sum(axis=0) / number
        return fluctuation

    def write(self, path: Path, source: Path, fingerprint: str | None = None) -> Path:
        metadata = {profile.FINGERPRINT_KEY: fingerprint or open_checkpoint(source).fingerprint}
        save_file(self.statistics, path, metadata)
        return path


def made_up(seed: int = 0, hessians: bool = True, rank: int = 96) -> MadeUp:
    """Inputs that depend on each other, as neurons do: `rank` sources mixed, and noise."""
    rng = np.random.default_rng(seed)
    result = MadeUp()
    for layer in range(NUM_LAYERS):
        mixing = rng.normal(size=(rank, WIDTH)) * rng.uniform(0.05, 1, WIDTH)
        sources = rng.normal(size=(SAMPLES, TOKENS, rank))
        x = sources @ mixing + 0.05 * rng.normal(size=(SAMPLES, TOKENS, WIDTH)) + rng.normal(size=WIDTH) / 4
        result.inputs[layer] = x
        own = {
            f"{LAYERS}{layer}.mlp.{profile.ACTIVATION}": np.abs(x).mean(axis=(0, 1)),
            f"{LAYERS}{layer}.{profile.INFLUENCE}": rng.uniform(0.01, 0.2, 1),
            f"{LAYERS}{layer}.self_attn.{profile.HEADS}": rng.uniform(0, 1, HEADS),
            f"{down_proj(layer)}.{profile.INPUT_MEAN}": result.mean(layer),
            f"{down_proj(layer)}.{profile.FLUCTUATION}": result.fluctuation(layer),
        }
        result.statistics |= {name: values.astype(np.float32) for name, values in own.items()}
        if hessians:
            hessian = result.hessian(layer).astype(np.float32)
            result.statistics |= dict(profile.pack_hessian(down_proj(layer), hessian, ENOUGH))
    return result


def as_float32(source: Path, target: Path, change: Callable[[dict[str, mx.array]], None]) -> Path:
    """A copy of a dense checkpoint in float32, with some tensors changed."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors" and file.name != "surgery.json":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = {}
    for file in source.glob("*.safetensors"):
        tensors |= {name: array.astype(mx.float32) for name, array in mx.load(str(file)).items()}
    change(tensors)
    mx.save_safetensors(str(target / "model.safetensors"), tensors, {"format": "pt"})
    return target
