"""Page and card are never written over somebody else's file."""

from __future__ import annotations

from pathlib import Path

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError
from gemma_surgery.report.fields import WHERE
from gemma_surgery.report.page import GENERATOR

# A mark of ours is near the beginning.
HEAD_BYTES = 1 << 16


def check_page(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file that is no report.

    Raises:
        SurgeryError: there is one, or a folder.
    """
    check_own(path, f'name="generator" content="{GENERATOR}', overwrite)


def check_own(path: Path, mark: str, overwrite: bool) -> None:
    """Refuse to replace a file without a mark.

    Raises:
        SurgeryError: there is one, or it cannot be read.
    """
    if path.is_dir():
        raise SurgeryError(
            WHERE, f"need a file to write, got the folder `{path}`", f"e.g. `{path}/report.html`"
        )
    if overwrite or not path.exists():
        return
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise SurgeryError(WHERE, f"cannot read `{path}`: {os_reason(error)}") from None
    if mark.encode() not in head:
        raise SurgeryError(
            WHERE,
            f"need a file that this command wrote, got another one at `{path}`",
            "choose another, or add `--overwrite`",
        )
