"""What every step is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from gemma_surgery.calibration.profile import Profile, read_profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.tensor import SourceMatrix


@dataclass(frozen=True)
class Step(ABC):
    """A frozen dataclass of parameters whose `plan` edits a draft; planning reads no weights.

    Attributes:
        changes_answers: whether the model may say something else afterwards.
    """

    changes_answers: ClassVar[bool] = True

    @abstractmethod
    def plan(self, draft: Draft) -> None:
        """Apply the step to `draft`.

        Raises:
            SurgeryError: the step does not fit the checkpoint, with the nearest valid choice.
        """


def open_profile(draft: Draft, path: str) -> Profile:
    """The profile of the draft's source in the file `path`; the running step's report will name it.

    Raises:
        SurgeryError: the file is no profile of this checkpoint.
    """
    file = Path(path).expanduser()
    stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else (0, 0)
    profile = _opened(file, stamp, draft.source.fingerprint)
    draft.profile_sha256 = profile.sha256
    return profile


# Several steps of a recipe take the same profile, whose identity is the hash of all its bytes.
@lru_cache(maxsize=4)
def _opened(file: Path, stamp: tuple[int, int], fingerprint: str) -> Profile:
    return read_profile(file, fingerprint)


def source_matrix(draft: Draft, step: str, name: str) -> SourceMatrix:
    """The source matrix that a tensor of the draft is made of: profiles and rankings go by its name.

    Raises:
        SurgeryError: the tensor does not come from the source.
    """
    origin = draft.tensor(name).origin
    if not isinstance(origin, SourceMatrix):
        raise SurgeryError(step, f"need a tensor of the source, got `{name}`")
    return origin
