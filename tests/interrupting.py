"""Pressing Ctrl-C at a known token."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from gemma_surgery.generation.stream import Generated
from gemma_surgery.session.engine import Engine

# The command line for `python -c`: a suite in the background ignores SIGINT, and its children inherit that.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gemma_surgery.cli import main
main()
"""


def interrupt_after(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send SIGINT at the given token of the next answer; 0: while its prompt is read."""
    answer = Engine.answer

    def interrupted(self: Engine, question: Any, prompt: Any, progress: Any) -> Iterator[Generated]:
        monkeypatch.setattr(Engine, "answer", answer)
        if num_tokens == 0:
            signal.raise_signal(signal.SIGINT)
        steps = answer(self, question, prompt, progress)

        def passed_on() -> Iterator[Generated]:
            try:
                for count, step in enumerate(steps, start=1):
                    if count == num_tokens:
                        signal.raise_signal(signal.SIGINT)
                    yield step
            finally:
                steps.close()

        return passed_on()

    monkeypatch.setattr(Engine, "answer", interrupted)
