"""Noticing that generation has fallen into a loop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The longest phrase whose repetition is noticed, in tokens.
MAX_PERIOD = 64
# A chorus or a table header comes back two or three times in honest text.
MIN_TIMES = 4
# Rules, dot leaders and small matrices of equal numbers are shorter than this.
MIN_TOKENS = 128


@dataclass(frozen=True)
class Repetition:
    """A stretch of generated tokens that repeats one phrase and nothing else.

    Attributes:
        period: tokens of the phrase.
        times: how often it came whole.
        start: index of its first token among the generated ones.
    """

    period: int
    times: int
    start: int


class LoopDetector:
    """Watches tokens one at a time; each costs one comparison per period.

    A loop is a tail of at least `MIN_TOKENS` tokens that is one phrase of at most `MAX_PERIOD` tokens, token
    for token, at least `MIN_TIMES` times. So a single token is a loop after 128 of its kind, a phrase of 8
    tokens after 16 times, one of 64 after 4 times. Numbered lists and tables do not match: their items
    differ.

    Attributes:
        longest: the longest loop seen, None when there was none; it grows while the loop goes on.
    """

    def __init__(self) -> None:
        self.longest: Repetition | None = None
        self._longest_tokens = 0
        self._count = 0
        # Newest first, so that entry p - 1 is the token p places back.
        self._recent = np.full(MAX_PERIOD, -1, np.int64)
        # By period: how many of the last tokens equal the one a period before them.
        self._matches = np.zeros(MAX_PERIOD, np.int64)

    def add(self, token: int) -> Repetition | None:
        """Take in a token.

        Returns:
            The loop that the tokens end in now, with the shortest period that fits, or None.
        """
        self._matches = np.where(self._recent == token, self._matches + 1, 0)
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        self._count += 1
        periods = np.arange(1, MAX_PERIOD + 1)
        lengths = self._matches + periods
        looping = (lengths >= MIN_TOKENS) & (lengths >= MIN_TIMES * periods)
        if not looping.any():
            return None
        index = int(looping.argmax())
        period, length = index + 1, int(lengths[index])
        found = Repetition(period, length // period, self._count - length)
        if length >= self._longest_tokens:
            self.longest, self._longest_tokens = found, length
        return found
