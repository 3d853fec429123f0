"""How `generate` and `chat` show an answer and its statistics."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_surgery.generation.stream import Generated


def show(text: str) -> None:
    """Write a piece of an answer to stdout, now."""
    try:
        sys.stdout.write(text)
    except UnicodeEncodeError:
        # A terminal that is not in UTF-8 shows question marks rather than nothing.
        encoding = sys.stdout.encoding
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something that is not data: to stderr, as it is."""
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def statistics_lines(step: Generated, with_draft: bool = False) -> list[str]:
    """Return the lines that mlx-lm prints, and one about the draft model if there is one."""
    lines = [
        f"Prompt: {step.prompt_tokens} tokens, {step.prompt_tps:.3f} tokens-per-sec",
        f"Generation: {step.generation_tokens} tokens, {step.generation_tps:.3f} tokens-per-sec",
        f"Peak memory: {step.peak_memory_bytes / 1e9:.3f} GB",
    ]
    if with_draft:
        share = step.accepted / step.drafted if step.drafted else 0.0
        lines.append(f"Draft: {step.accepted} of {step.drafted} proposed tokens accepted, {share:.1%}")
    return lines


def repetition_line(step: Generated) -> str | None:
    """Return what to say about a loop that the answer fell into, None if it did not."""
    found = step.repetition
    if found is None:
        return None
    phrase = "1 token" if found.period == 1 else f"{found.period} tokens"
    ended = "" if step.finish_reason == "repetition" else "; `--stop-on-repetition` would have ended it"
    return (
        f"note: the answer fell into a loop at token {found.start + 1}: {phrase}, {found.times} times{ended}"
    )
