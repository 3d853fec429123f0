"""Scores of a written model: by transformers, greedy, on scenes and inputs held out of training."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from gemma_surgery.demo_model.questions import (
    QUESTION_KINDS,
    Turn,
    answer_is_right,
    question,
    two_image_turn,
)
from gemma_surgery.demo_model.scenes import Scene, random_scene, render, score_description
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, TASK_KINDS, random_task
from tiny.activity import NeuronActivity, silent_shares
from tiny.affine import quantizable, round_trip
from tiny.anatomy import IMAGE_SIZE, PATCH_SIZE, TOKENS_PER_IMAGE
from tiny.batches import hidden_states, make_batch
from tiny.samples import Sampler

NUM_DESCRIPTIONS = 300
PER_QUESTION_KIND = 50
PER_TASK_KIND = 30
BATCH = 32
# Labels of kinds: images and texts both have a `count`.
SCENE_LABELS = tuple(f"image: {kind}" for kind in QUESTION_KINDS if kind != "describe")
PAIR_LABELS = ("image: describe_one", "image: which_image")
ENGLISH_LABELS = tuple(f"text: {kind}" for kind in ENGLISH_KINDS)
TRANSLATION_LABELS = ("text: translate",)
LONGEST_ANSWER = 64


@dataclass(frozen=True)
class Variant:
    """One way to run the model.

    Attributes:
        image_size: pixels; other than 224, the position table is resampled bilinearly.
        num_layers: text layers kept, from the first.
        four_bit: weights as MLX's affine 4-bit quantization in groups of 64 stores them.
    """

    name: str
    image_size: int = IMAGE_SIZE
    num_layers: int = 8
    four_bit: bool = False


VARIANTS = (
    Variant("bf16, as trained"),
    Variant("4-bit", four_bit=True),
    Variant("bf16, 168 px", image_size=168),
    Variant("bf16, last 2 layers dropped", num_layers=6),
    Variant("4-bit, 168 px, last 2 layers dropped", image_size=168, num_layers=6, four_bit=True),
)


@dataclass(frozen=True)
class Case:
    """One exchange to test; descriptions are scored fact by fact."""

    turn: Turn
    scenes: tuple[Scene, ...] = ()

    @property
    def label(self) -> str:
        """Its kind, images and texts apart."""
        return f"{'image' if self.scenes else 'text'}: {self.turn.kind}"


@dataclass
class Scores:
    """Results of one variant.

    Attributes:
        facts: facts right and facts in all, see `score_description`.
        exact: label -> answers right to the letter, and asked.
        examples: a few wrong answers: prompt, expected, got.
    """

    facts: tuple[int, int] = (0, 0)
    exact: dict[str, tuple[int, int]] = field(default_factory=dict)
    examples: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def fact_share(self) -> float:
        """Facts right, 0..1."""
        return self.facts[0] / self.facts[1]

    def share(self, labels: Sequence[str]) -> float:
        """Answers right over all of `labels`, 0..1."""
        pairs = [self.exact[label] for label in labels]
        return sum(right for right, _ in pairs) / sum(asked for _, asked in pairs)


def held_out_cases(seed: int) -> list[Case]:
    """300 descriptions, 50 of every other scene question, 50 pairs of images, 30 of every task kind."""
    rng = random.Random(f"evaluation {seed}")
    cases = []
    for kind in QUESTION_KINDS:
        wanted = NUM_DESCRIPTIONS if kind == "describe" else PER_QUESTION_KIND
        while wanted:
            scene = random_scene(rng, split="held_out")
            turn = question(kind, scene, rng)
            if turn is not None:
                cases.append(Case(turn, (scene,)))
                wanted -= 1
    for _ in range(PER_QUESTION_KIND):
        pair = (random_scene(rng, split="held_out"), random_scene(rng, split="held_out"))
        cases.append(Case(two_image_turn(*pair, rng), pair))
    for kind in TASK_KINDS:
        for _ in range(PER_TASK_KIND):
            task = random_task(rng, kind, "held_out")
            cases.append(Case(Turn(kind, task.prompt, task.answer)))
    return cases


def load(folder: Path, variant: Variant) -> tuple[Gemma3ForConditionalGeneration, AutoProcessor]:
    """The model of `folder` in bfloat16 under `variant`, and its processor."""
    processor = AutoProcessor.from_pretrained(folder)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    if variant.four_bit:
        for weight in quantizable(model):
            weight.data = round_trip(weight.data)
    model = _resized(model, processor, variant.image_size)
    layers = model.model.language_model.layers
    del layers[variant.num_layers :]
    text = model.config.text_config
    text.num_hidden_layers = variant.num_layers
    text.layer_types = text.layer_types[: variant.num_layers]
    return model.eval(), processor


def evaluate(
    folder: Path, variant: Variant, cases: Sequence[Case], report: Callable[[str], None] = print
) -> Scores:
    """Answer all `cases` and score the answers."""
    model, processor = load(folder, variant)
    scores = Scores()
    for case, answer in _answers(model, processor, cases):
        turn = case.turn
        if turn.kind == "describe":
            right, total = score_description(answer, case.scenes[0])
            scores.facts = (scores.facts[0] + right, scores.facts[1] + total)
        good = answer_is_right(answer, turn.answer)
        right, asked = scores.exact.get(case.label, (0, 0))
        scores.exact[case.label] = (right + good, asked + 1)
        if not good:
            scores.examples.append((turn.prompt, turn.answer, answer))
    kinds = ", ".join(f"{kind} {right}/{asked}" for kind, (right, asked) in scores.exact.items())
    report(f"{variant.name}: facts {scores.facts[0]}/{scores.facts[1]} = {scores.fact_share:.4f}; {kinds}")
    return scores


@torch.no_grad()
def silent_neurons(folder: Path, seed: int, num_samples: int = 200) -> dict[float, list[float]]:
    """Shares of silent MLP neurons per text layer, over samples like those of training."""
    model, processor = load(folder, VARIANTS[0])
    model = model.float()
    activity = NeuronActivity(model)
    sampler = Sampler(processor.tokenizer.backend_tokenizer, f"{seed} activity")
    sums: dict[int, torch.Tensor] = {}
    for index in range(num_samples):
        if index % 3 == 0:
            sample = sampler.image_chat(TOKENS_PER_IMAGE, max_things=3)
        else:
            sample = sampler.text_chat() if index % 3 == 1 else sampler.plain_text()
        # One row at a time: padding would count as tokens.
        hidden_states(model, make_batch([sample]))
        for layer, means in activity.means.items():
            sums[layer] = sums.get(layer, 0) + means * len(sample.ids)
    return silent_shares(sums)


def _answers(
    model: Gemma3ForConditionalGeneration, processor: AutoProcessor, cases: Sequence[Case]
) -> list[tuple[Case, str]]:
    """Greedy answers; prompts of equal length share a batch, so that nothing is padded."""
    by_length: dict[tuple[int, int], list[tuple[Case, str]]] = {}
    for case in cases:
        content = [{"type": "image"} for _ in case.scenes] + [{"type": "text", "text": case.turn.prompt}]
        messages = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(messages, add_generation_prompt=True).removeprefix("<bos>")
        length = len(processor.tokenizer(text).input_ids)
        by_length.setdefault((length, len(case.scenes)), []).append((case, text))
    answers = []
    for _, members in sorted(by_length.items()):
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            images = [[render(scene) for scene in case.scenes] for case, _ in part]
            inputs = processor(
                text=[text for _, text in part], images=images if images[0] else None, return_tensors="pt"
            )
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            with torch.no_grad():
                written = model.generate(**inputs, max_new_tokens=LONGEST_ANSWER, do_sample=False)
            fresh = written[:, inputs["input_ids"].shape[1] :]
            texts = processor.batch_decode(fresh, skip_special_tokens=True)
            answers += [(case, answer) for (case, _), answer in zip(part, texts, strict=True)]
    return answers


def _resized(
    model: Gemma3ForConditionalGeneration, processor: AutoProcessor, image_size: int
) -> Gemma3ForConditionalGeneration:
    """The model for another image size; the pooling kernel stays, so there are fewer image tokens."""
    if image_size == IMAGE_SIZE:
        return model
    side, full = image_size // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE
    tokens = (side // model.model.multi_modal_projector.kernel_size) ** 2
    config = copy.deepcopy(model.config)
    config.vision_config.image_size = image_size
    config.mm_tokens_per_image = tokens
    name = "model.vision_tower.embeddings.position_embedding.weight"
    state = model.state_dict()
    grid = state[name].float().view(1, full, full, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=(side, side), mode="bilinear", align_corners=False)
    state[name] = grid.flatten(2).squeeze(0).T.to(model.dtype)
    smaller = Gemma3ForConditionalGeneration(config).to(model.dtype)
    smaller.load_state_dict(state)
    processor.image_processor.size = {"height": image_size, "width": image_size}
    processor.image_seq_length = tokens
    # The text that stands for an image is made once, when the processor is.
    image_token = processor.tokenizer.image_token
    many, few = image_token * model.config.mm_tokens_per_image, image_token * tokens
    processor.full_image_sequence = processor.full_image_sequence.replace(many, few)
    return smaller
