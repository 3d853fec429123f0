"""What every step is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from gemma_surgery.surgery.draft import Draft


@dataclass(frozen=True)
class Step(ABC):
    """A frozen dataclass of parameters whose `plan` edits a draft; planning reads no weights."""

    @abstractmethod
    def plan(self, draft: Draft) -> None:
        """Apply the step to `draft`.

        Raises:
            SurgeryError: the step does not fit the checkpoint, with the nearest valid choice.
        """
