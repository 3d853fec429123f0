"""Fuzz the safetensors header parser: `python tools/fuzz_header.py --seconds 600 --seed 1`.

Right headers are changed structurally (offsets, shapes, dtypes, names, nesting, numbers in odd spellings,
keys twice) and bytewise, and parsed. A finding is anything but a clean answer: an exception other than
`SurgeryError`, a message of several lines, an accepted tensor outside the file, or an accepted file that the
safetensors library refuses or reads differently. Inputs with a new kind of answer join the corpus, so that
changes build on changes. Ends with a line of JSON; exit code 1 if there was a finding, whose input is saved.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, deserialize

from gemma_surgery.checkpoint import ITEM_BYTES, encode_header, parse_header, read_header
from gemma_surgery.errors import SurgeryError

MAX_CORPUS = 600
MAX_INPUT_BYTES = 20_000
MAX_SHOWN = 80
# Spellings of numbers that parsers disagree about, and values at the edges of integer types.
NUMBERS = [
    *(b"0 1 2 3 4 7 8 16 -1 -0 -0.0 0.0 1.0 1e3 1E+2 1e-0 1e999 1e400 00 01 +1 .5 1. 0x10 1_000".split()),
    *(b'true false null NaN Infinity -Infinity [] {} "1" [0] [[]]'.split()),
    *(
        str(2**power + d).encode()
        for power in (8, 16, 31, 32, 53, 61, 62, 63, 64, 65, 128)
        for d in (-1, 0, 1)
    ),
    b"9" * 400,
    b"9" * 4400,
]
TOKENS = [
    *(b'{ } [ ] , : " \\ / \\u0061 \\u0000 \\ud800 \\ud83d\\ude00 \\uDFFF \\x \\" \\n'.split(b" ")),
    *(bytes([value]) for value in (0, 9, 10, 13, 32, 127, 128, 192, 255)),
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xef\xbb\xbf", "é".encode(), "\u2028".encode(),
    b"dtype", b"shape", b"data_offsets", b"__metadata__", b"F32", b"F4", b"F6_E2M3", b"BF16", b"C64", b"BOOL",
    b'"dtype":"U8",', b'"shape":[0],', b'"data_offsets":[0,0],', b'"x":0,', b'"__metadata__":{},',
    b'"__metadata__":null,',
    b"[" * 100, b"[" * 3000, b'{"a":' * 1500, b" " * 50,
]  # fmt: skip
# What differs between two messages of one kind.
VARYING = re.compile(r"`[^`]*`|\[[^]]*\]|0x..|dtype \w+|-?\d[\d,.]*(?:e[+-]\d+)?")
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


class Finding(Exception):
    """What no input may cause."""


def examine(data: bytes, path: Path | None) -> str:
    """Parse one file and return the kind of answer, e.g. for the corpus.

    Raises:
        Finding: the answer is none, or disagrees with safetensors.
    """
    try:
        header = parse_header(data, len(data), "x") if path is None else read_header(path)
    except SurgeryError as error:
        if "\n" in error.message or not error.message.isprintable():
            raise Finding(f"message of several lines: {error.message!r}") from None
        if len(error.message) > 1000:
            raise Finding(f"message of {len(error.message)} characters") from None
        return VARYING.sub("#", error.message)
    except BaseException as error:
        raise Finding(f"{type(error).__name__}: {error}") from error
    expected = header.data_start
    for info in header.tensors.values():
        if not (expected == info.start <= info.end <= len(data)):
            raise Finding(f"accepted a tensor outside its place: {info}")
        expected = info.end
    try:
        theirs = dict(deserialize(data))
    except SafetensorError as error:
        raise Finding(f"accepted what safetensors refuses: {error}") from None
    if theirs.keys() != header.tensors.keys():
        raise Finding("read other names than safetensors")
    for name, info in header.tensors.items():
        if (
            tuple(theirs[name]["shape"]) != info.shape
            or bytes(theirs[name]["data"]) != data[info.start : info.end]
        ):
            raise Finding(f"read {name!r} other than safetensors")
    return f"accepted {min(len(header.tensors), 4)} tensors, {min(len(header.metadata), 2)} strings"


def seed_corpus(rng: random.Random) -> list[bytes]:
    """Right files of several sizes, spacings and names."""
    corpus = []
    for count in (0, 1, 2, 3, 5, 12):
        tensors = []
        for number in range(count):
            shape = tuple(rng.randint(0, 4) for _ in range(rng.randint(0, 4)))
            tensors.append(
                (
                    rng.choice(["a.b", "w\u00e9", "x y", '"']) + str(number),
                    rng.choice(list(ITEM_BYTES)),
                    shape,
                )
            )
        for metadata in ({}, {"format": "mlx", "k\n": ""}):
            header, _ = encode_header(tensors, metadata, rng.choice([8, 64]))
            size = sum(parse_size(dtype, shape) for _, dtype, shape in tensors)
            corpus.append(header + rng.randbytes(size))
            spaced = json.dumps(json.loads(header[8:]), indent=1, ensure_ascii=True).encode()
            corpus.append(with_length(spaced) + rng.randbytes(size))
    return corpus


def parse_size(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of one tensor."""
    size = ITEM_BYTES[dtype]
    for extent in shape:
        size *= extent
    return size


def with_length(text: bytes) -> bytes:
    """Put the right length field before a header text."""
    return len(text).to_bytes(8, "little") + text


def split(data: bytes) -> tuple[bytes, bytes]:
    """Split a file in header text and body, as far as its length field is sane."""
    length = min(int.from_bytes(data[:8], "little"), len(data) - 8) if len(data) >= 8 else 0
    return data[8 : 8 + length], data[8 + length :]


def change_number(rng: random.Random, text: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Replace one number: by an odd spelling, by a neighbour, or by another number of the file."""
    found = list(NUMBER.finditer(text))
    if not found:
        return text, body
    match = rng.choice(found)
    kind = rng.randrange(3)
    new = rng.choice(NUMBERS)
    if kind == 1 and match[0].isdigit():
        new = str(max(int(match[0][:300]) + rng.choice([-8, -4, -1, 1, 4, 8]), -3)).encode()
    elif kind == 2:
        new = rng.choice(found)[0]
    return text[: match.start()] + new + text[match.end() :], body


def change_entries(rng: random.Random, text: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Rearrange the JSON itself: swap, drop, repeat or retype parts, keeping the rest well-formed."""
    try:
        pairs: list[tuple[str, object]] = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):
        return change_bytes(rng, text, body)
    if not isinstance(pairs, list) or not pairs or not all(isinstance(p, tuple) for p in pairs):
        return change_bytes(rng, text, body)
    kind = rng.randrange(6)
    place = rng.randrange(len(pairs))
    name, value = pairs[place]
    if kind == 0:
        pairs.insert(rng.randrange(len(pairs) + 1), (name, value))
    elif kind == 1:
        del pairs[place]
    elif kind == 2:
        other = rng.randrange(len(pairs))
        pairs[place], pairs[other] = (pairs[other][0], value), (name, pairs[other][1])
    elif kind == 3:
        pairs[place] = (rng.choice(["__metadata__", "", "a" * 3000, "\ud800", "\0", name + "\u202e"]), value)
    elif kind == 4 and isinstance(value, list) and value and isinstance(value[0], tuple):
        fields = list(value)
        at = rng.randrange(len(fields))
        fields[at] = (
            rng.choice([fields[at][0], "dtype", "shape", "data_offsets", "extra"]),
            rng.choice(fields)[1],
        )
        pairs[place] = (name, fields)
    else:
        body = body + b"\0" * rng.choice([0, 1, 4]) if rng.random() < 0.5 else body[: -rng.choice([1, 4])]
    return write_pairs(pairs), body


def write_pairs(value: object) -> bytes:
    """Write what `object_pairs_hook=list` has read: lists of tuples are objects, keys may repeat."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        inner = b",".join(json.dumps(key).encode() + b":" + write_pairs(item) for key, item in value)
        return b"{" + inner + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(write_pairs, value)) + b"]"
    return json.dumps(value).encode()


def change_token(rng: random.Random, text: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Insert or overwrite with a token of the format."""
    place = rng.randrange(len(text) + 1)
    token = rng.choice(TOKENS)
    cut = rng.choice([0, 0, 1, len(token)])
    return text[:place] + token + text[place + cut :], body


def change_bytes(rng: random.Random, text: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Flip, drop, double or move bytes."""
    if not text:
        return b"{}", body
    place, end = sorted((rng.randrange(len(text) + 1), rng.randrange(len(text) + 1)))
    kind = rng.randrange(4)
    if kind == 0:
        at = rng.randrange(len(text))
        return text[:at] + bytes([text[at] ^ (1 << rng.randrange(8))]) + text[at + 1 :], body
    if kind == 1:
        return text[:place] + text[end:], body
    if kind == 2:
        return text[:end] + text[place:end] + text[end:], body
    at = rng.randrange(len(text) + 1)
    return text[:at] + text[place:end] + text[at:], body


CHANGES: list[Callable[[random.Random, bytes, bytes], tuple[bytes, bytes]]] = [
    change_number,
    change_number,
    change_entries,
    change_entries,
    change_token,
    change_bytes,
]


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Return a changed file; most keep a right length field, so that the JSON is reached."""
    text, body = split(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        text, body = rng.choice(CHANGES)(rng, text, body)
    result = with_length(text) + body
    kind = rng.random()
    if kind < 0.05:
        wild = rng.choice([0, 1, 7, 2**31, 2**63, 2**64 - 1, 100_000_000, 100_000_001, len(text) + len(body)])
        result = wild.to_bytes(8, "little") + result[8:]
    elif kind < 0.10:
        result = max(len(text) + rng.randint(-9, 9), 0).to_bytes(8, "little") + result[8:]
    elif kind < 0.13:
        result = result[: rng.randrange(len(result) + 1)]
    return result


def main() -> int:
    """Fuzz until the time is over."""
    parser = argparse.ArgumentParser(description="Fuzz the safetensors header parser.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the random numbers (default: random, printed)"
    )
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where inputs are saved")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    rng = random.Random(seed)
    corpus = seed_corpus(rng)
    answers: collections.Counter[str] = collections.Counter(examine(data, None) for data in corpus)
    assert all(answer.startswith("accepted") for answer in answers), answers
    runs = accepted = 0
    findings: list[str] = []
    begin = report_at = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        while (now := time.monotonic()) - begin < options.seconds and len(findings) < 20:
            data = mutate(rng, rng.choice(corpus))
            through_file = runs % 64 == 0
            if through_file:
                path.write_bytes(data)
            runs += 1
            try:
                answer = examine(data, path if through_file else None)
            except Finding as finding:
                findings.append(str(finding)[:300])
                options.findings.mkdir(parents=True, exist_ok=True)
                (options.findings / f"seed{seed}-{runs}.safetensors").write_bytes(data)
                print(f"FINDING at run {runs}: {finding}", file=sys.stderr)
                continue
            accepted += answer.startswith("accepted")
            answers[answer] += 1
            # Kinds that are still rare are kept too, so that the corpus does not stop at the first of each.
            if answers[answer] <= 4 and len(data) <= MAX_INPUT_BYTES:
                if len(corpus) >= MAX_CORPUS:
                    corpus.pop(rng.randrange(24, len(corpus)))
                corpus.append(data)
            if now > report_at and sys.stderr.isatty():
                print(
                    f"{runs:,} runs, {len(answers)} answers, corpus {len(corpus)}", end="\r", file=sys.stderr
                )
                report_at = now + 1
    seconds = time.monotonic() - begin
    for answer, count in answers.most_common(MAX_SHOWN):
        print(f"{count:>10,}  {answer}", file=sys.stderr)
    summary = {
        "seed": seed,
        "seconds": round(seconds, 1),
        "executions": runs,
        "accepted": accepted,
        "kinds_of_answers": len(answers),
        "corpus": len(corpus),
        "findings": findings,
    }
    print(json.dumps(summary))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
