"""What a search has measured, line by line in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError


@dataclass(frozen=True)
class Measured:
    """One checkpoint that was made and measured.

    Attributes:
        size_bytes: of its tensors.
        kl: mean divergence from the original, nats.
        stderr: its standard error.
    """

    size_bytes: int
    kl: float
    stderr: float


class Journal:
    """Measurements by the hash of the plan that made the checkpoint.

    Args:
        path: appended to; None keeps nothing.
        identity: of reference, data and protocol: measurements under another one are refused.

    Raises:
        SurgeryError: the file belongs to another search or cannot be read.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path = path
        self._known: dict[str, Measured] = {}
        if path is None:
            return
        try:
            text = path.read_text("utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            reason = os_reason(error) if isinstance(error, OSError) else "it is not UTF-8"
            raise SurgeryError("search", f"cannot read `{path}`: {reason}") from None
        entries = [entry for line in text.splitlines() if (entry := _entry(line)) is not None]
        if entries and entries[0].get("search") != identity:
            raise SurgeryError(
                "search",
                f"need the journal of this search, got one of another model, data or protocol in `{path}`",
                "repeat the interrupted command, or choose another output",
            )
        if text and not text.endswith("\n"):
            # What follows a line that a crash cut off must not become part of it.
            self._write("\n")
        if not entries:
            self._append({"search": identity})
        for entry in entries[1:]:
            size_bytes, kl, stderr = entry.get("size_bytes"), entry.get("kl"), entry.get("stderr")
            plan = entry.get("plan")
            if isinstance(plan, str) and isinstance(size_bytes, int):
                self._known[plan] = Measured(size_bytes, float(str(kl)), float(str(stderr)))

    def get(self, plan_sha256: str) -> Measured | None:
        """What was measured of a plan, None if it was not yet."""
        return self._known.get(plan_sha256)

    def add(self, plan_sha256: str, measured: Measured) -> None:
        """Keep a measurement."""
        self._known[plan_sha256] = measured
        self._append({"plan": plan_sha256, **vars(measured)})

    def _append(self, entry: dict[str, object]) -> None:
        if self._path is not None:
            self._write(json.dumps(entry) + "\n")

    def _write(self, text: str) -> None:
        assert self._path is not None
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise SurgeryError("search", f"cannot write `{self._path}`: {os_reason(error)}") from None


def _entry(line: str) -> dict[str, object] | None:
    """A line's object; None for what a crash left unfinished."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
