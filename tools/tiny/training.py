"""Phase 2: tower, projector and language model together, on images, tasks and plain text."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch import nn
from transformers import Gemma3ForConditionalGeneration

from tiny.activity import NeuronActivity
from tiny.affine import rounded
from tiny.anatomy import IMAGE_SIZE, SMALL_IMAGE_SIZE, SMALL_TOKENS, TOKENS_PER_IMAGE
from tiny.batches import Batch, answer_logits, make_batch, summed_loss
from tiny.phases import Phase
from tiny.progress import HeldOut
from tiny.samples import Sampler

# Per step, over all workers.
IMAGE_CHATS, PLAIN_TEXTS = 18, 4
WEIGHT_DECAY = 0.05
# Robustness to the surgeries that shrink a model: smaller images, and no layers behind the last global one.
SMALL_SHARE = 0.3
SHORT_SHARES = {6: 0.2, 7: 0.05}
# Weight of `NeuronActivity.concentration`. At 0.1 from the first step on, 98 % of the neurons died before
# they had learned anything.
ACTIVITY_WEIGHT = 0.005
EVALUATE_EVERY, SAVE_EVERY = 500, 250


def train(
    model: Gemma3ForConditionalGeneration,
    tokenizer: Tokenizer,
    phase: Phase,
    seed: int,
    folder: Path,
) -> None:
    """Run `phase`, or what is left of it: its state is `folder / "<stream>.pt"`.

    Runs in every worker of the process group: each takes its share of the samples, gradients are averaged.
    """
    rank, workers = dist.get_rank(), dist.get_world_size()
    optimizer = _optimizer(model, phase)
    first, steps, state_path = 0, phase.steps, folder / f"{phase.stream}.pt"
    if state_path.exists():
        state = torch.load(state_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        print(f"{phase.stream}: resumed at step {first}", flush=True)
    held_out = HeldOut(tokenizer, seed)
    activity = NeuronActivity(model)
    started, num_samples = time.monotonic(), 0
    for step in range(first, steps):
        # Every step has a random stream of its own: a resumed run sees the same samples.
        setting = Setting.draw(random.Random(f"{seed} {phase.stream} {step}"), phase, step)
        mixture = phase.mixture(step)
        sampler = Sampler(tokenizer, f"{seed} {phase.stream} {step} worker {rank}", mixture)
        for group in optimizer.param_groups:
            group["lr"] = phase.rate(group["peak"], step)
        optimizer.zero_grad(set_to_none=True)
        with rounded(model, setting.quantized) if setting.is_rounded else nullcontext():
            language_loss, loss = _backward(model, activity, _batches(sampler, setting, workers), setting)
        _average_gradients(model, workers)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        count = IMAGE_CHATS + mixture.text_chats + PLAIN_TEXTS
        num_samples += count
        if rank == 0 and (step % 50 == 0 or step == steps - 1):
            seconds = time.monotonic() - started
            rate = (step + 1 - first) / seconds
            print(
                f"{phase.stream} {step}/{steps} loss {language_loss:.4f} (with penalty {loss:.4f}) "
                f"at {setting.image_size} px, {setting.num_layers} layers, "
                f"{num_samples / seconds:.0f} samples/s, {rate:.2f} steps/s, {seconds:.0f} s, "
                f"ETA {(steps - step - 1) / rate / 60:.1f} min",
                flush=True,
            )
        last = step == steps - 1
        if rank == 0 and (step % SAVE_EVERY == SAVE_EVERY - 1 or last):
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, state_path.with_suffix(".tmp"))
            state_path.with_suffix(".tmp").replace(state_path)
        if rank == 0 and (step % EVALUATE_EVERY == EVALUATE_EVERY - 1 or last):
            with activity.paused():
                print(f"held out at {phase.stream} {step}: {held_out.summary(model)}", flush=True)


@dataclass(frozen=True)
class Setting:
    """What all workers do alike in one step."""

    image_size: int
    tokens_per_image: int
    num_layers: int
    max_things: int
    is_penalized: bool
    is_rounded: bool
    quantized: bool

    @classmethod
    def draw(cls, rng: random.Random, phase: Phase, step: int) -> Setting:
        """The setting of a step of `phase`."""
        progress = step / phase.schedule_steps
        small = rng.random() < SMALL_SHARE
        shares = {8: 1 - sum(SHORT_SHARES.values()), **SHORT_SHARES}
        return cls(
            image_size=SMALL_IMAGE_SIZE if small else IMAGE_SIZE,
            tokens_per_image=SMALL_TOKENS if small else TOKENS_PER_IMAGE,
            num_layers=rng.choices(list(shares), list(shares.values()))[0],
            max_things=1 + (progress >= phase.two_things_from) + (progress >= phase.three_things_from),
            is_penalized=progress >= phase.penalized_from,
            is_rounded=progress >= phase.rounded_from,
            quantized=rng.random() < 0.5,
        )


def _batches(sampler: Sampler, setting: Setting, workers: int) -> tuple[Batch, Batch]:
    """This worker's images and texts, apart because their lengths differ."""
    images = [
        sampler.image_chat(setting.tokens_per_image, setting.max_things)
        for _ in range(IMAGE_CHATS // workers)
    ]
    texts = [sampler.text_chat() for _ in range(sampler.mixture.text_chats // workers)]
    texts += [sampler.plain_text() for _ in range(PLAIN_TEXTS // workers)]
    return make_batch(images, setting.image_size), make_batch(texts)


def _average_gradients(model: Gemma3ForConditionalGeneration, workers: int) -> None:
    if workers == 1:
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= workers
    for gradient, averaged in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def _backward(
    model: Gemma3ForConditionalGeneration,
    activity: NeuronActivity,
    batches: Sequence[Batch],
    setting: Setting,
) -> tuple[float, float]:
    """Gradients of the mean loss over everything that counts in `batches`; the two losses."""
    weight = float(sum(batch.weights[:, 1:].sum() for batch in batches))
    language_loss = total = 0.0
    for batch in batches:
        activity.clear()
        loss = summed_loss(*answer_logits(model, batch, setting.num_layers)) / weight
        language_loss += loss.item()
        if setting.is_penalized:
            loss = loss + ACTIVITY_WEIGHT * activity.concentration() / len(batches)
        loss.backward()
        total += loss.item()
    return language_loss, total


def _optimizer(model: Gemma3ForConditionalGeneration, phase: Phase) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms, biases and tables do not."""
    groups = []
    for vision, rate in ((False, phase.text_rate), (True, phase.vision_rate)):
        for decays in (False, True):
            members = [
                parameter
                for name, parameter in model.named_parameters()
                if ("language_model" not in name) == vision
                and (parameter.ndim > 1 and "embed" not in name) == decays
            ]
            groups.append({"params": members, "peak": rate, "weight_decay": WEIGHT_DECAY if decays else 0.0})
    return torch.optim.AdamW(groups, lr=phase.text_rate, betas=(0.9, 0.98))
