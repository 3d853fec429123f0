"""What a person types into a chat: lines, several of them where they belong together."""

from __future__ import annotations

import contextlib
import sys
from typing import NamedTuple

from gemma_surgery.errors import SurgeryError

MARK = ">>> "
CONTINUED = "... "
QUOTES = '"""'


class Entry(NamedTuple):
    """A message, or a command: its name without the slash and what follows it."""

    text: str
    command: str | None = None


class ChatInput:
    """Reads entries from stdin; on a terminal with prompt marks, editing and history.

    A line that ends in a backslash goes on in the next one. Three double quotes start a block that ends with
    three double quotes. A line that starts with a slash is a command.

    Attributes:
        is_terminal: whether a person types.
    """

    def __init__(self) -> None:
        self.is_terminal = sys.stdin.isatty()
        if self.is_terminal:
            # Its import alone gives `input` editing and history.
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401

    def read(self) -> Entry | None:
        """Return the next entry, None at the end of the input.

        Raises:
            SurgeryError: a block is not closed, or the input is not UTF-8.
            KeyboardInterrupt: Ctrl-C at the prompt.
        """
        while True:
            line = self._line(MARK)
            if line is None:
                return None
            if line.startswith(QUOTES):
                return Entry(self._block(line[len(QUOTES) :]))
            if line.startswith("/"):
                name, _, rest = line[1:].partition(" ")
                return Entry(rest.strip(), name.strip())
            text = self._continued(line)
            if text.strip():
                return Entry(text)

    def _continued(self, line: str) -> str:
        lines = []
        while line.endswith("\\"):
            lines.append(line[:-1])
            following = self._line(CONTINUED)
            if following is None:
                return "\n".join(lines)
            line = following
        return "\n".join([*lines, line])

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(QUOTES):
            lines.append(line)
            following = self._line(CONTINUED)
            if following is None:
                raise SurgeryError("chat", f"need `{QUOTES}` at the end of a block, got the end of the input")
            line = following
        lines.append(line.rstrip()[: -len(QUOTES)])
        return "\n".join(lines).strip("\n")

    def _line(self, mark: str) -> str | None:
        if self.is_terminal:
            try:
                return input(mark)
            except EOFError:
                print()
                return None
        data = sys.stdin.buffer.readline()
        if not data:
            return None
        try:
            return data.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise SurgeryError("chat", "need text in UTF-8, got something else on stdin") from None
