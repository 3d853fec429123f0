"""Speculative decoding against plain decoding of the same prompts: are the tokens the same, how much faster.

By default the demo model drafts for itself, compressed: each held-out prompt (half of them with an image) is
answered greedily by the original alone and by the original with the compressed model proposing, in turn.

Usage: ``python bench/speculative.py [MODEL DRAFT] [--prompts 100] [--draft-tokens 3]``
MODEL and DRAFT are checkpoints; the prompts are the demo model's own. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from pathlib import Path

from machine import describe_machine

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import SCALED, demo_model_path
from gemma_surgery.demo_model.questions import DESCRIBE
from gemma_surgery.demo_model.scenes import random_scene, render
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task
from gemma_surgery.generation.loading import load
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.request import Draft
from gemma_surgery.generation.stream import Generated, stream_generate
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.executor import execute

MAX_TOKENS = 96


def questions(count: int, seed: int = 0) -> list[tuple[str, list]]:
    """Return prompts and their images: tasks and scenes in turn, none of them trained on."""
    rng = random.Random(seed)
    asked: list[tuple[str, list]] = []
    for index in range(count):
        if index % 2:
            scene = random_scene(rng, split="held_out")
            asked.append((rng.choice(DESCRIBE), [render(scene)]))
        else:
            kind = ENGLISH_KINDS[index // 2 % len(ENGLISH_KINDS)]
            asked.append((random_task(rng, kind, split="held_out").prompt, []))
    return asked


def answer(model, tokenizer, prompt, **options) -> tuple[list[int], Generated]:
    """Return the tokens of the greedy answer and the last step."""
    steps = list(stream_generate(model, tokenizer, prompt, max_tokens=MAX_TOKENS, **options))
    return [step.token for step in steps], steps[-1]


def compare(model_path: Path, draft_path: Path, count: int, num_draft_tokens: int) -> dict:
    """Answer every prompt both ways."""
    model, tokenizer = load(model_path)
    draft_model, draft_tokenizer = load(draft_path)
    draft = Draft.of(model, tokenizer, draft_model, draft_tokenizer)
    same = drafted = accepted = tokens = 0
    speed_ups = []
    for text, images in questions(count):
        prompt = build_prompt(tokenizer, model.config, text, images)
        options = {"draft_model": draft, "num_draft_tokens": num_draft_tokens}
        if images:
            # The compressed model sees the image at a resolution of its own.
            options["draft_prompt"] = build_prompt(draft_tokenizer, draft_model.config, text, images)
        plain_tokens, plain = answer(model, tokenizer, prompt)
        fast_tokens, fast = answer(model, tokenizer, prompt, **options)
        same += plain_tokens == fast_tokens
        drafted, accepted, tokens = (
            drafted + fast.drafted,
            accepted + fast.accepted,
            tokens + len(fast_tokens),
        )
        if plain.generation_tps and fast.generation_tps:
            speed_ups.append(fast.generation_tps / plain.generation_tps)
    return {
        "prompts": count,
        "same_tokens": same,
        "generated_tokens": tokens,
        "draft_tokens": num_draft_tokens,
        "acceptance_rate": accepted / max(1, drafted),
        "speed_up_median": statistics.median(speed_ups),
    }


def main() -> None:
    """Run the comparison and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--draft-tokens", type=int, default=3)
    arguments = parser.parse_args()
    if len(arguments.checkpoints) not in (0, 2):
        parser.error("give both a model and a draft, or neither")
    with tempfile.TemporaryDirectory() as folder:
        if arguments.checkpoints:
            model, draft = arguments.checkpoints
        else:
            model, draft = demo_model_path("bf16"), Path(folder) / "mobile"
            execute(make_plan(open_checkpoint(model), load_recipe("mobile", SCALED)), draft)
        result = compare(model, draft, arguments.prompts, arguments.draft_tokens)
        machine = describe_machine(Path(folder))
    for key, value in {**machine, **result}.items():
        print(f"{key:18} {value:.3f}" if isinstance(value, float) else f"{key:18} {value}")
    print(json.dumps({**machine, **result}))


if __name__ == "__main__":
    main()
