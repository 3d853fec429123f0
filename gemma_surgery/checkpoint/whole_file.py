"""Small files of ours: written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError


def write_whole(path: Path, text: str, where: str) -> None:
    """Write a text in UTF-8 by way of a sibling; a file that was there is replaced.

    Args:
        path: in a folder that exists.
        text: the whole of it.
        where: the part of the program that an error names.

    Raises:
        SurgeryError: it cannot be written; what was there is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, "utf-8", newline="\n")
        temporary.replace(path)
    except OSError as error:
        raise SurgeryError(where, f"cannot write `{path}`: {os_reason(error)}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
