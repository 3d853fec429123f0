"""`tie_head`: drop an output head that repeats the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft, MustBeEqual


@dataclass(frozen=True)
class TieHead(Step):
    """Drop a duplicate `lm_head`, so that the tied embedding serves as the head.

    Lossless. Gemma 3 is tied by design; MLX conversions of the vision-language models store the table
    twice. That the two are bit-identical is checked on the weights before anything is written.
    """

    changes_answers: ClassVar[bool] = False

    def plan(self, draft: Draft) -> None:
        """Drop the head's tensors."""
        family = Gemma3(draft.config)
        stem = family.head.removesuffix("weight")
        parts = [name for name in draft.tensors if name.startswith(stem)]
        if not parts:
            draft.note("the head is tied already: nothing to drop")
            return
        head, embedding = draft.tensors.get(family.head), draft.tensor(family.embedding)
        if head is not None and (head.shape, head.encoding) != (embedding.shape, embedding.encoding):
            raise SurgeryError(
                "tie_head",
                f"need `{family.head}` to be stored like `{family.embedding}`, got {list(head.shape)} "
                f"{head.encoding.describe()} and {list(embedding.shape)} {embedding.encoding.describe()}",
                "put `tie_head` before steps that change the embedding, or leave it out",
            )
        draft.requirements.append(MustBeEqual("tie_head", family.head, family.embedding))
        for name in parts:
            draft.drop(name)
        if draft.config.get("tie_word_embeddings") is False:
            draft.config["tie_word_embeddings"] = True
