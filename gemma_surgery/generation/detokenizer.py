"""Text out of a stream of tokens, each token looked at once and never half a character shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError

REPLACEMENT_CHARACTER = "\ufffd"
_HEX_DIGITS = frozenset("0123456789abcdefABCDEF")
_BYTE_TOKEN_CHARS = len("<0xFF>")


class StreamingDetokenizer:
    """Decodes one token at a time; all pieces together are what decoding all tokens at once gives.

    A run of byte tokens such as `<0xF0>` is held back until a token of another kind ends it. Only then is it
    known whether it is UTF-8: if it is not, every one of its bytes becomes U+FFFD, as in `tokenizers`.

    Args:
        token_of: id -> surface form; None for ids that print nothing, i.e. ids without a token and special
            tokens where these are skipped.
        replacements: `(old, new)` applied to every surface form, usually U+2581 -> space.

    Example:
        >>> stream = tokenizer.detokenizer()
        >>> for token_id in ids:
        ...     print(stream.add(token_id), end="")
        >>> print(stream.finish())
    """

    def __init__(
        self, token_of: Callable[[int], str | None], replacements: Sequence[tuple[str, str]]
    ) -> None:
        self._token_of = token_of
        self._replacements = tuple(replacements)
        self._run = bytearray()
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        """Everything returned so far; takes time in its length."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def add(self, token_id: int) -> str:
        """Take one more token and return the text that is now certain, often the token's own.

        Args:
            token_id: an id of the original vocabulary.
        """
        token = self._token_of(token_id)
        if token is None:
            return ""
        for old, new in self._replacements:
            token = token.replace(old, new)
        byte = byte_of(token)
        if byte is not None:
            self._run.append(byte)
            return ""
        return self._emit(self._end_of_run() + token)

    def finish(self) -> str:
        """Return what was held back: the stream has ended."""
        return self._emit(self._end_of_run())

    def _end_of_run(self) -> str:
        if not self._run:
            return ""
        try:
            text = self._run.decode("utf-8")
        except UnicodeDecodeError:
            text = REPLACEMENT_CHARACTER * len(self._run)
        self._run.clear()
        return text

    def _emit(self, text: str) -> str:
        if text:
            self._pieces.append(text)
        return text


def byte_of(token: str) -> int | None:
    """Return the byte that a token such as `<0x0A>` stands for, None for any other token."""
    if len(token) != _BYTE_TOKEN_CHARS or not (token.startswith("<0x") and token.endswith(">")):
        return None
    high, low = token[3], token[4]
    # The library's number parser takes `+A` for A as well.
    if low not in _HEX_DIGITS or (high not in _HEX_DIGITS and high != "+"):
        return None
    return int(high + low, 16)


def decoder_replacements(state: bytes, file: str) -> list[tuple[str, str]]:
    """Read the replacements off a serialised decoder and check that it is byte fallback as in Gemma.

    Args:
        state: the `decoder` of a tokenizer.json, as JSON.
        file: the tokenizer's file name, for messages.

    Raises:
        SurgeryError: the decoder is not `Replace` (of a fixed string), `ByteFallback`, `Fuse`, in this order.
    """
    document = json.loads(state)
    chain = document.get("decoders", [document])
    replacements: list[tuple[str, str]] = []
    kinds = [str(step.get("type")) for step in chain]
    for step in chain:
        if step.get("type") == "Replace" and isinstance(pattern := step["pattern"].get("String"), str):
            replacements.append((pattern, step["content"]))
    expected = ["Replace"] * len(replacements) + ["ByteFallback", "Fuse"]
    if kinds != expected:
        raise SurgeryError(
            "tokenizer",
            "need a decoder of `Replace`, `ByteFallback` and `Fuse`, "
            f"got {literal(', '.join(kinds))} in `{file}`",
            "only Gemma's tokenizers are supported",
        )
    return replacements
