"""A checkpoint that is measured: what it reads, and what its distributions come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.stream import LayerStream
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config
from gemma_surgery.quality.divergence import Side
from gemma_surgery.quality.protocol import Scored
from gemma_surgery.quality.vocabulary import ModelTokens
from gemma_surgery.surgery.pool import Progress

ModelSource = str | Path | Checkpoint
# Makes a progress report for a phase of this name.
Progresses = Callable[[str], Progress]


@dataclass(frozen=True, eq=False)
class Subject:
    """An opened checkpoint with its tokenizer; no weight is read before it is asked for.

    Attributes:
        checkpoint: opened whole.
        tokenizer: of its folder.
        config: what its config.json says.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    config: ModelConfig

    @staticmethod
    def open(model: ModelSource) -> Subject:
        """Open a folder, a repository id or an opened checkpoint.

        Raises:
            SurgeryError: no such checkpoint, another family, or no tokenizer.
        """
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
        return Subject(checkpoint, Tokenizer.load(checkpoint), read_model_config(checkpoint))

    @property
    def path(self) -> Path:
        """The folder."""
        return self.checkpoint.path

    @cached_property
    def stream(self) -> LayerStream:
        """The checkpoint, layer by layer."""
        return LayerStream(self.checkpoint, mx.float32)

    @cached_property
    def tokens(self) -> ModelTokens:
        """Its vocabulary; reads the output head."""
        return ModelTokens.of(self.tokenizer, self.stream.vocabulary.rows, self.config.text.vocab_size)

    def read(self, scored: Sequence[Scored], progress: Progress) -> Side:
        """Take samples through the model.

        Args:
            scored: at least one sample.
            progress: told of tokens times layers.

        Raises:
            SurgeryError: as `LayerStream`.
        """
        stream = LayerStream(self.checkpoint, mx.float32, progress=progress)
        states = stream.final_states([each.sample for each in scored])
        return Side(
            self.tokens,
            self.stream.vocabulary,
            scored,
            [_before(states[index], each) for index, each in enumerate(scored)],
        )


def split_side(side: Side, count: int) -> tuple[Side, Side]:
    """The first `count` samples of a side, and the others."""
    return (
        Side(side.tokens, side.head, side.scored[:count], side.states[:count]),
        Side(side.tokens, side.head, side.scored[count:], side.states[count:]),
    )


def _before(states: npt.NDArray[np.float32], scored: Scored) -> npt.NDArray[np.float32]:
    """States before each scored token."""
    return states[scored.first - 1 : len(scored.sample.tokens) - 1]
