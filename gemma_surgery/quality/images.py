"""Does it still see? Facts named in drawn scenes, and descriptions that agree with the reference's."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gemma_surgery.demo_model.questions import DESCRIBE
from gemma_surgery.demo_model.scenes import random_scene, render, score_description
from gemma_surgery.generation.prompt import build_prompt
from gemma_surgery.generation.stream import generate
from gemma_surgery.quality.repetition import CONTINUATION_TOKENS

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.generation.image_file import ImageSource
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model

SCENE_SEED = 0

Advance = Callable[[int], None]

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
# Words that say nothing about a picture.
_LISTED = (
    "a about above all also am an and another any appear appears are as at be been being both but by can"
    " depicts describe description detail detailed do does each for from has have here how i image images in"
    " into is it it's its itself likely looks me more most my no not of off on one only or other our out over"
    " overall photo photograph picture seems several she he shows so some such than that the their them then"
    " there there's these they this those to too up us very was we well were what when where which while who"
    " with within you your"
)
_EMPTY_WORDS = frozenset(_LISTED.split())


@dataclass(frozen=True)
class Description:
    """What a model said about one image.

    Attributes:
        text: the answer.
        looped: whether it fell into a loop.
    """

    text: str
    looped: bool


@dataclass(frozen=True)
class SceneReport:
    """Drawn scenes described.

    Attributes:
        right: facts named right.
        total: facts to be named, and those named without being there.
        loops: descriptions that fell into a loop.
        scenes: that were shown.
    """

    right: int
    total: int
    loops: int
    scenes: int

    @property
    def share(self) -> float:
        """Facts right, 0 to 1."""
        return self.right / self.total

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "kind": "facts",
            "images": self.scenes,
            "right": self.right,
            "total": self.total,
            "share": self.share,
            "loops": self.loops,
        }


@dataclass(frozen=True)
class AgreementReport:
    """Images described by two models.

    Attributes:
        agreements: per image, F1 of the content words; empty without a reference.
        candidate: descriptions of the model.
        reference: those of the reference, empty without one.
    """

    agreements: tuple[float, ...]
    candidate: tuple[Description, ...] = field(repr=False)
    reference: tuple[Description, ...] = field(repr=False)

    @property
    def share(self) -> float | None:
        """Mean agreement, 0 to 1."""
        return sum(self.agreements) / len(self.agreements) if self.agreements else None

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "kind": "agreement",
            "images": len(self.candidate),
            "share": self.share,
            "least": min(self.agreements, default=None),
            "loops": sum(each.looped for each in self.candidate),
            "loops_reference": sum(each.looped for each in self.reference),
            "descriptions": [each.text for each in self.candidate],
            "descriptions_reference": [each.text for each in self.reference],
        }


def describe_scenes(
    model: Gemma3Model, tokenizer: Tokenizer, count: int, advance: Advance = lambda done: None
) -> SceneReport:
    """Let a demo checkpoint describe scenes that were held out from its training, and check every fact.

    Args:
        model: from `load`; sees images.
        tokenizer: from `load`.
        count: scenes, the same for every checkpoint.
        advance: called with 1 after each.
    """
    rng = random.Random(SCENE_SEED)
    right = total = loops = 0
    for _ in range(count):
        scene = random_scene(rng, split="held_out")
        said = _describe(model, tokenizer, rng.choice(DESCRIBE), render(scene))
        named, of = score_description(said.text, scene)
        right, total, loops = right + named, total + of, loops + said.looped
        advance(1)
    return SceneReport(right, total, loops, count)


def describe_images(
    model: Gemma3Model,
    tokenizer: Tokenizer,
    passages: Sequence[Passage],
    advance: Advance = lambda done: None,
) -> tuple[Description, ...]:
    """Let a model answer the prompts of image passages greedily.

    Args:
        model: from `load`; sees images.
        tokenizer: from `load`.
        passages: with an image each.
        advance: called with 1 after each.

    Raises:
        SurgeryError: an image cannot be read.
    """
    said: list[Description] = []
    for passage in passages:
        assert passage.image is not None
        said.append(_describe(model, tokenizer, passage.prompt, passage.image))
        advance(1)
    return tuple(said)


def agreement_report(
    candidate: Sequence[Description], reference: Sequence[Description] = ()
) -> AgreementReport:
    """Compare descriptions of the same images; without a reference there is nothing to agree with."""
    pairs = zip(candidate, reference, strict=True) if reference else ()
    agreements = tuple(agreement(mine.text, its.text) for mine, its in pairs)
    return AgreementReport(agreements, tuple(candidate), tuple(reference))


def agreement(first: str, second: str) -> float:
    """F1 of the content words of two texts: 1 for the same words, 0 for none in common."""
    one, other = content_words(first), content_words(second)
    if not one and not other:
        return 1.0
    return 2 * len(one & other) / (len(one) + len(other))


def content_words(text: str) -> frozenset[str]:
    """The words of a text that say something about a picture, in lower case."""
    return frozenset(word.casefold() for word in _WORD.findall(text)) - _EMPTY_WORDS


def _describe(model: Gemma3Model, tokenizer: Tokenizer, question: str, image: ImageSource) -> Description:
    prompt = build_prompt(tokenizer, model.config, question, [image])
    answer = generate(model, tokenizer, prompt, max_tokens=CONTINUATION_TOKENS)
    return Description(answer.text, answer.repetition is not None)
