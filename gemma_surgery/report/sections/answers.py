"""What both models say to the same prompts and about the same images."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_surgery.report.answers import Answer
from gemma_surgery.report.differences import marked
from gemma_surgery.report.material import Material
from gemma_surgery.report.sections.blocks import Block, Missing, Pair, Pairs, Section

NOTE = "Greedy answers. Words that only {} wrote are struck out, words that only {} wrote are underlined."
MAX_DESCRIPTIONS = 12


def answers_section(material: Material) -> Section:
    """Answers to prompts, before and after."""
    if not material.answers:
        missing = Missing("Answers of both models", "gemma-surgery report OUT --reference ORIGINAL")
        return Section("answers", "Answers", "", (missing,))
    pairs = _pairs(material.answers)
    lead = f"{sum(pair.same for pair in pairs):,} of {len(pairs):,} answers are the same, word for word."
    return Section(
        "answers", "Answers", lead, (_block("texts", "Before and after", _names(material), pairs),)
    )


def images_section(material: Material) -> Section | None:
    """Descriptions of images, before and after; None for text-only outputs."""
    if not material.multimodal:
        return None
    blocks: list[Block] = []
    if material.image_answers:
        pairs = _pairs(material.image_answers)
        blocks.append(_block("pictures", "Shown to both", _names(material), pairs))
    final = material.final
    images = final.images if final else None
    if final and images and images.descriptions and images.descriptions_reference:
        both = list(zip(images.descriptions_reference, images.descriptions, strict=False))
        told = tuple(
            Answer(f"Image {index + 1} of {len(both)}", *texts)
            for index, texts in enumerate(both[:MAX_DESCRIPTIONS])
        )
        title = "Descriptions that were measured"
        names = (final.reference or "the reference", final.label)
        blocks.append(_block("descriptions", title, names, _pairs(told)))
    if not blocks:
        command = "gemma-surgery report OUT --reference ORIGINAL --images FOLDER"
        blocks.append(Missing("Descriptions of images by both models", command))
    return Section("images", "Images", "", tuple(blocks))


def _names(material: Material) -> tuple[str, str]:
    return "the original" if material.reference_is_source else material.reference, "the output"


def _block(key: str, title: str, names: tuple[str, str], pairs: tuple[Pair, ...]) -> Block:
    return Pairs(key, title, NOTE.format(*names), names, pairs)


def _pairs(answers: Sequence[Answer]) -> tuple[Pair, ...]:
    return tuple(
        Pair(
            each.prompt,
            *marked(each.before, each.after),
            each.before.split() == each.after.split(),
            each.thumbnail,
        )
        for each in answers
    )
