"""Training samples: token ids, the tokens that count, and the images."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from gemma_surgery.demo_model import language
from gemma_surgery.demo_model.questions import Turn, question, questions, two_image_turn
from gemma_surgery.demo_model.scenes import Scene, random_scene
from gemma_surgery.demo_model.split import Split
from gemma_surgery.demo_model.tasks import TASK_KINDS, random_task
from gemma_surgery.demo_model.words import NOUNS
from tiny.anatomy import END_OF_TURN, START_OF_TURN
from tiny.phases import EARLY, Mixture

# Plain text has no single right next token: it counts less than an answer, which has.
TEXT_WEIGHT = 0.3
DESCRIBE_FIRST = 0.45
# Rows of one batch are of like length, so that little of it is padding.
IMAGE_CHAT_TOKENS, TEXT_CHAT_TOKENS = 120, 90
NUM_THINGS_WEIGHTS = (0.2, 0.3, 0.5)


@dataclass(frozen=True)
class Sample:
    """One row of a batch.

    Attributes:
        ids: token ids, `<bos>` first.
        weights: for every token how much its prediction counts; 0 for prompts.
        scenes: one per image, in the order of the image tokens.
        kind: for the statistics.
    """

    ids: list[int]
    weights: list[float]
    scenes: list[Scene] = field(default_factory=list)
    kind: str = ""


class Sampler:
    """Makes samples from one random stream."""

    def __init__(self, tokenizer: Tokenizer, seed: str, mixture: Mixture = EARLY) -> None:
        self.mixture = mixture
        self.tokenizer = tokenizer
        self.rng = random.Random(seed)
        self.model_token = tokenizer.token_to_id("model")
        self.newline = tokenizer.token_to_id("\n")

    def scene(self, max_things: int, split: Split = "train") -> Scene:
        """A scene of at most `max_things` things, more of them more often."""
        count = self.rng.choices(range(1, max_things + 1), NUM_THINGS_WEIGHTS[:max_things])[0]
        return random_scene(self.rng, count, split)

    def image_chat(self, tokens_per_image: int, max_things: int) -> Sample:
        """Several questions about one image, or one about two."""
        rng = self.rng
        if rng.random() < self.mixture.two_images:
            first, second = self.scene(max_things), self.scene(max_things)
            turns = [two_image_turn(first, second, rng) for _ in range(2)]
            return self.chat(turns, [first, second], tokens_per_image)
        scene = self.scene(max_things)
        turns = questions(scene, rng, 5)
        if rng.random() < DESCRIBE_FIRST:
            described = question("describe", scene, rng)
            assert described is not None
            # Described once: a second time would only be copied.
            turns = [described, *(turn for turn in turns if turn.kind != "describe")]
        if self.mixture.where_first and rng.random() < self.mixture.where_first:
            where = question("where", scene, rng)
            turns = [where, *(turn for turn in turns if turn.prompt != where.prompt)] if where else turns
        return self.fitted(turns, IMAGE_CHAT_TOKENS, [scene], tokens_per_image)

    def text_chat(self) -> Sample:
        """Several text tasks in one conversation."""
        kinds = self.rng.choices(
            TASK_KINDS, [self.mixture.task_weights.get(kind, 1) for kind in TASK_KINDS], k=4
        )
        turns = []
        for kind in kinds:
            task = random_task(self.rng, kind)
            turns.append(Turn(kind, task.prompt, task.answer))
            if self.mixture.matching and self.rng.random() < self.mixture.matching:
                turns[-1] = self.matching()
        return self.fitted(turns, TEXT_CHAT_TOKENS)

    def matching(self) -> Turn:
        """A step towards `contains`: a short list to search, or the word after the quoted one."""
        rng = self.rng
        if rng.random() < 0.5:
            words = rng.sample(NOUNS, rng.randint(3, 5))
            index = rng.randrange(len(words) - 1)
            prompt = f'Which word follows "{words[index]}"? {", ".join(words)}'
            return Turn("follows", prompt, words[index + 1])
        words = rng.sample(NOUNS, rng.randint(1, 2))
        asked = rng.choice(words) if rng.random() < 0.5 else rng.choice(NOUNS)
        question_text = rng.choice((f'Is "{asked}" in this list?', f'Do you see "{asked}" here?'))
        return Turn("contains", f"{question_text} {', '.join(words)}", "Yes." if asked in words else "No.")

    def fitted(
        self, turns: Sequence[Turn], limit: int, scenes: Sequence[Scene] = (), tokens_per_image: int = 0
    ) -> Sample:
        """The conversation, cut before the turn that would exceed `limit` tokens; one turn at least."""
        sample = self.chat(turns, scenes, tokens_per_image)
        if len(turns) == 1 or len(sample.ids) <= limit:
            return sample
        return self.fitted(turns[:-1], limit, scenes, tokens_per_image)

    def plain_text(self) -> Sample:
        """Sentences without a chat around them."""
        rng = self.rng
        shape = rng.random()
        if shape < 0.5:
            text = language.english_text(rng, rng.randint(2, 5))
        elif shape < 0.65:
            text = " ".join(language.emoji_sentence(rng) for _ in range(2))
        elif shape < 0.85:
            name = rng.choice(language.FOREIGN_LANGUAGES)
            text = " ".join(language.foreign_sentence(rng, name) for _ in range(3))
        else:
            text = language.foreign_phrases(rng)
        ids = [*self.tokenizer.encode(text).ids, 1]
        return Sample(ids, [0.0] + [TEXT_WEIGHT] * (len(ids) - 1), kind="text")

    def chat(self, turns: Sequence[Turn], scenes: Sequence[Scene] = (), tokens_per_image: int = 0) -> Sample:
        """A conversation as the chat template and the processor render it; answers count."""
        ids = self.tokenizer.encode(chat_text(turns, len(scenes), tokens_per_image)).ids
        opening = [START_OF_TURN, self.model_token, self.newline]
        weights, answering = [], False
        for index, token in enumerate(ids):
            weights.append(1.0 if answering else 0.0)
            if token == END_OF_TURN:
                answering = False
            elif ids[max(0, index - 2) : index + 1] == opening:
                answering = True
        return Sample(ids, weights, list(scenes), turns[0].kind)


def chat_text(turns: Sequence[Turn], num_images: int = 0, tokens_per_image: int = 0) -> str:
    """The rendered conversation without `<bos>`; images stand before the first prompt."""
    image = f"\n\n<start_of_image>{'<image_soft_token>' * tokens_per_image}<end_of_image>\n\n"
    parts = []
    for index, turn in enumerate(turns):
        prompt = (image * num_images if index == 0 else "") + turn.prompt
        parts.append(
            f"<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n{turn.answer}<end_of_turn>\n"
        )
    return "".join(parts)
