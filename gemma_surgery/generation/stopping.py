"""Stop strings: text before one is shown, the string itself and what follows never."""

from __future__ import annotations

from collections.abc import Sequence

from gemma_surgery.errors import SurgeryError


class StopStrings:
    """Lets text through until one of the strings is complete.

    A stop string may span any number of pieces. What could still become one is held back until that is
    decided. Where several could match, the first to be complete decides, and among those that end together
    the one that began first; so the outcome does not depend on how the text was cut into pieces.

    Args:
        strings: none of them empty; a single string counts as one.

    Raises:
        SurgeryError: something else.

    Attributes:
        found: the string that ended the text, or None.
    """

    def __init__(self, strings: Sequence[str] | str = ()) -> None:
        self.strings = (strings,) if isinstance(strings, str) else tuple(strings)
        for string in self.strings:
            if not isinstance(string, str) or not string:
                raise SurgeryError("generate", f"need stop strings of at least one character, got {string!r}")
        self.found: str | None = None
        self._held = ""

    def add(self, text: str) -> str:
        """Take in a piece of text; returns what may be shown now. After a match nothing more is shown."""
        if self.found is not None:
            return ""
        pending = self._held + text
        ends = [
            (pending.find(string) + len(string), -len(string), string)
            for string in self.strings
            if string in pending
        ]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return pending[: end - len(self.found)]
        hold = self._undecided(pending)
        self._held = pending[len(pending) - hold :]
        return pending[: len(pending) - hold]

    def finish(self) -> str:
        """The text that was held back and can no longer become a stop string."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that some stop string starts with."""
        longest = max((len(string) for string in self.strings), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(string.startswith(text[-length:]) for string in self.strings):
                return length
        return 0
