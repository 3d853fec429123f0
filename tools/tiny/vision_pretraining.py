"""Phase 1: the vision tower learns to see before the language model learns to speak."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Gemma3ForConditionalGeneration

from gemma_surgery.demo_model.scenes import COLOURS, POSITIONS, SHAPES, Scene, random_scene
from tiny.anatomy import IMAGE_SIZE, PATCH_SIZE, SMALL_IMAGE_SIZE, image_features
from tiny.pictures import pixels_of
from tiny.schedule import learning_rate

BATCH = 48
PEAK_RATE = 2e-3
# Crowded scenes give more to learn per image than the 1 to 3 things of the task.
MAX_THINGS_HERE = 7
SMALL_SHARE = 0.35
LABELS = len(COLOURS) + 1 + len(SHAPES) + 1


class CellHead(nn.Module):
    """Reads colour and shape of each of the nine cells off the image tokens; thrown away afterwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        side_full, side_small = IMAGE_SIZE // PATCH_SIZE // 4, SMALL_IMAGE_SIZE // PATCH_SIZE // 4
        self.by_tokens = nn.ModuleDict(
            {
                str(side**2): nn.Linear(side**2 * width, len(POSITIONS) * LABELS)
                for side in (side_full, side_small)
            }
        )

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens `[B, N, E]` -> logits of colours `[B, 9, 9]` and shapes `[B, 9, 6]`; class 0 is nothing."""
        logits = self.by_tokens[str(tokens.shape[1])](tokens.flatten(1)).view(
            len(tokens), len(POSITIONS), LABELS
        )
        return logits[..., : len(COLOURS) + 1], logits[..., len(COLOURS) + 1 :]


def cell_labels(scenes: list[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour and shape classes `[B, 9]`, 0 where a cell is empty."""
    colours = torch.zeros(len(scenes), len(POSITIONS), dtype=torch.long)
    shapes = torch.zeros_like(colours)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            colours[row, thing.cell] = 1 + COLOURS.index(thing.colour)
            shapes[row, thing.cell] = 1 + SHAPES.index(thing.shape)
    return colours, shapes


def pretrain(model: Gemma3ForConditionalGeneration, steps: int, seed: int, folder: Path) -> None:
    """Train tower and projector for `steps` steps; the state is saved to `folder / "vision.pt"`."""
    rng = random.Random(f"vision {seed}")
    vision = [*model.model.vision_tower.parameters(), *model.model.multi_modal_projector.parameters()]
    head = CellHead(model.config.text_config.hidden_size)
    parameters = [*vision, *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, PEAK_RATE, warmup=50)
        size = SMALL_IMAGE_SIZE if rng.random() < SMALL_SHARE else IMAGE_SIZE
        scenes = [random_scene(rng, rng.randint(1, MAX_THINGS_HERE)) for _ in range(BATCH)]
        loss, right = _loss(model, head, scenes, size)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(
                f"vision {step}/{steps} at {size} px: loss {loss.item():.4f}, things right {right:.3f}, "
                f"{(step + 1) * BATCH / seconds:.0f} images/s, {seconds:.0f} s",
                flush=True,
            )
    state = {name: value for name, value in model.state_dict().items() if _is_vision(name)}
    torch.save(state, folder / "vision.pt")


def _is_vision(name: str) -> bool:
    return "vision_tower" in name or "multi_modal_projector" in name


def _loss(
    model: Gemma3ForConditionalGeneration, head: CellHead, scenes: list[Scene], size: int
) -> tuple[torch.Tensor, float]:
    colour_logits, shape_logits = head(image_features(model, pixels_of(scenes, size)))
    colours, shapes = cell_labels(scenes)
    loss = cross_entropy(colour_logits.flatten(0, 1), colours.flatten())
    loss = loss + cross_entropy(shape_logits.flatten(0, 1), shapes.flatten())
    both = (colour_logits.argmax(-1) == colours) & (shape_logits.argmax(-1) == shapes)
    return loss, both[colours > 0].float().mean().item()
