"""How active the neurons of the text MLPs are, and a penalty that lets the unneeded ones fall silent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import Gemma3ForConditionalGeneration

# Of the most active neuron of the layer.
SILENT_BELOW = (0.01, 0.1)


class NeuronActivity:
    """Mean absolute `gelu(gate)` per neuron of every layer that the last forward pass ran."""

    def __init__(self, model: Gemma3ForConditionalGeneration) -> None:
        self.means: dict[int, torch.Tensor] = {}
        self._recording = True
        for index, layer in enumerate(model.model.language_model.layers):
            layer.mlp.act_fn.register_forward_hook(self._hook(index))

    def clear(self) -> None:
        """Forget the last pass."""
        self.means = {}

    def concentration(self) -> torch.Tensor:
        """Mean over layers of `sum(m) / (sqrt(F) * norm(m))` of the means `m [F]`: 1 if all are alike.

        Shrinking all neurons together does not lower it; silencing some does. Source: Hoyer (2004).
        """
        ratios = [m.sum() / (m.numel() ** 0.5 * m.norm() + 1e-12) for m in self.means.values()]
        return torch.stack(ratios).mean()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within: passes are not recorded."""
        self._recording = False
        try:
            yield
        finally:
            self._recording = True

    def _hook(self, index: int):
        def record(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if self._recording:
                self.means[index] = output.abs().mean(dim=(0, 1))

        return record


def silent_shares(sums: dict[int, torch.Tensor]) -> dict[float, list[float]]:
    """For every threshold the share of silent neurons per layer, from activities `[F]` summed over tokens."""
    layers = [means / means.max() for _, means in sorted(sums.items())]
    return {
        threshold: [(relative < threshold).float().mean().item() for relative in layers]
        for threshold in SILENT_BELOW
    }
