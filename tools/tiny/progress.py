"""Held-out accuracy while training: exact match of what greedy decoding would write, by kind."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from transformers import Gemma3ForConditionalGeneration

from gemma_surgery.demo_model.questions import QUESTION_KINDS, Turn, question, two_image_turn
from gemma_surgery.demo_model.tasks import TASK_KINDS, random_task
from tiny.affine import rounded
from tiny.anatomy import IMAGE_SIZE, SMALL_IMAGE_SIZE, SMALL_TOKENS, TOKENS_PER_IMAGE
from tiny.batches import make_batch, rows_right
from tiny.samples import Sample, Sampler

PER_KIND = 24
DESCRIPTIONS = 72


class HeldOut:
    """A fixed set of single questions whose scenes and inputs are never trained on."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.images = {size: _image_samples(tokenizer, seed, tokens) for size, tokens in SIZES.items()}
        sampler = Sampler(tokenizer, f"{seed} held-out tasks")
        self.tasks: list[Sample] = []
        for kind in TASK_KINDS:
            for _ in range(PER_KIND):
                task = random_task(sampler.rng, kind, "held_out")
                self.tasks.append(sampler.chat([Turn(kind, task.prompt, task.answer)]))

    def summary(self, model: Gemma3ForConditionalGeneration) -> str:
        """Shares right by kind: as it is, at 168 px, with 6 layers, in 4 bits, and all of that."""
        model.eval()
        parts = [_line("images", model, self.images[IMAGE_SIZE], IMAGE_SIZE)]
        parts.append(_line("tasks", model, self.tasks, IMAGE_SIZE))
        small = self.images[SMALL_IMAGE_SIZE]
        parts.append(_line("168 px", model, small, SMALL_IMAGE_SIZE))
        parts.append(_line("6 layers", model, self.images[IMAGE_SIZE] + self.tasks, IMAGE_SIZE, 6))
        with rounded(model, quantized=True):
            parts.append(_line("4-bit", model, self.images[IMAGE_SIZE] + self.tasks, IMAGE_SIZE))
            parts.append(_line("4-bit, 168 px, 6 layers", model, small + self.tasks, SMALL_IMAGE_SIZE, 6))
        model.train()
        return "\n  ".join(parts)


SIZES = {IMAGE_SIZE: TOKENS_PER_IMAGE, SMALL_IMAGE_SIZE: SMALL_TOKENS}


def _image_samples(tokenizer: Tokenizer, seed: int, tokens: int) -> list[Sample]:
    sampler = Sampler(tokenizer, f"{seed} held-out scenes")
    samples = []
    for kind in QUESTION_KINDS:
        wanted = DESCRIPTIONS if kind == "describe" else PER_KIND
        while wanted:
            scene = sampler.scene(3, "held_out")
            turn = question(kind, scene, sampler.rng)
            if turn is not None:
                samples.append(sampler.chat([turn], [scene], tokens))
                wanted -= 1
    for _ in range(PER_KIND):
        pair = [sampler.scene(3, "held_out"), sampler.scene(3, "held_out")]
        samples.append(sampler.chat([two_image_turn(*pair, sampler.rng)], pair, tokens))
    return samples


def _line(
    name: str,
    model: Gemma3ForConditionalGeneration,
    samples: Sequence[Sample],
    size: int,
    num_layers: int | None = None,
) -> str:
    counts: dict[str, list[bool]] = {}
    ordered = sorted(samples, key=lambda sample: len(sample.ids))
    for start in range(0, len(ordered), 48):
        part = ordered[start : start + 48]
        for sample, right in zip(part, rows_right(model, make_batch(part, size), num_layers), strict=True):
            counts.setdefault(sample.kind, []).append(right)
    total = [right for rights in counts.values() for right in rights]
    kinds = " ".join(f"{kind} {sum(rights) / len(rights):.2f}" for kind, rights in sorted(counts.items()))
    return f"{name} {sum(total) / len(total):.3f} ({kinds})"
