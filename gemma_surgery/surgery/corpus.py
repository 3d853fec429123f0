"""Counting the tokens that a user's own texts use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.tokenizer import TokenizerFile

Mask = npt.NDArray[np.bool_]

WHERE = "prune_vocabulary"
DOCUMENT_CHARACTERS = 1 << 15
BATCH_DOCUMENTS = 64


def from_corpus(
    tokenizer: TokenizerFile, files: Sequence[Path], tokenizer_path: Path, min_count: int = 1
) -> Mask:
    """Match the tokens that occur in the files at least `min_count` times.

    Args:
        tokenizer: the original tokenizer.
        files: plain text, or JSON lines with the text under `text` (`.jsonl`, `.ndjson`).
        tokenizer_path: the tokenizer.json, which the `tokenizers` library loads (about 620 MB for Gemma 3).
        min_count: the threshold, 1 or more.

    Returns:
        Bool [num_ids].

    Raises:
        SurgeryError: a file cannot be read, is not UTF-8 or has a line without a text; file and line named.
    """
    if min_count < 1:
        raise SurgeryError(WHERE, f"need `min_count` of at least 1, got {min_count}")
    mask: Mask = corpus_counts(files, tokenizer_path, tokenizer.num_ids) >= min_count
    return mask


def corpus_counts(files: Sequence[Path], tokenizer_path: Path, num_ids: int) -> npt.NDArray[np.int64]:
    """Return int64 [num_ids], how often every token occurs in the files. See `from_corpus`."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_file(str(tokenizer_path))
    encoder.no_truncation()
    encoder.no_padding()
    counts = np.zeros(num_ids, np.int64)
    if not files:
        raise SurgeryError(WHERE, "need at least one corpus file, got none")
    for path in files:
        for batch in _batches(documents(path)):
            for encoding in encoder.encode_batch_fast(batch, add_special_tokens=False):
                counts += np.bincount(np.asarray(encoding.ids, np.int64), minlength=num_ids)
    return counts


def documents(path: Path) -> Iterator[str]:
    """Yield the texts of a file without holding more than one of them.

    JSON lines give one text per line. Plain text comes in pieces of about 32,768 characters that end at a
    line end, so that runs of newlines stay together.

    Raises:
        SurgeryError: the file cannot be read, is not UTF-8 or has a line without a text.
    """
    if path.suffix in (".jsonl", ".ndjson"):
        for number, line in text_lines(path, WHERE):
            if line.strip():
                yield _record_text(line, path, number)
        return
    piece: list[str] = []
    size = 0
    for _, line in text_lines(path, WHERE):
        if size >= DOCUMENT_CHARACTERS and line.strip("\r\n"):
            yield "".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield "".join(piece)


def text_lines(path: Path, where: str) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line of a UTF-8 file, line ends as they are.

    Raises:
        SurgeryError: as `where`: the file cannot be read or is not UTF-8.
    """
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield number, line.decode()
                except UnicodeDecodeError as error:
                    raise SurgeryError(
                        where,
                        f"need UTF-8, got byte 0x{line[error.start]:02x} in `{path}` line {number}",
                    ) from None
    except OSError as error:
        raise SurgeryError(where, f"cannot read `{path}`: {error.strerror}") from None


def _record_text(line: str, path: Path, number: int) -> str:
    try:
        record: object = orjson.loads(line)
    except orjson.JSONDecodeError:
        record = None
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise SurgeryError(WHERE, f"need a JSON object with a string `text` in `{path}` line {number}")
    return text


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch
