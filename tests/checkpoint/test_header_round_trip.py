"""Headers in agreement with the safetensors library: what either writes, the other reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save
from small_checkpoints import entry, header_bytes

from gemma_surgery.checkpoint import ITEM_BYTES, encode_header, parse_header, read_header
from gemma_surgery.errors import SurgeryError

NUMPY_TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "I16": np.int16,
    "U16": np.uint16,
    "F16": np.float16,
    "I32": np.int32,
    "U32": np.uint32,
    "F32": np.float32,
    "I64": np.int64,
    "U64": np.uint64,
    "F64": np.float64,
}
NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and _is_utf8(name))
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


@given(
    tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(NUMPY_TYPES)), SHAPES), max_size=6),
    metadata=st.dictionaries(st.text().filter(_is_utf8), st.text().filter(_is_utf8), max_size=3),
)
def test_files_of_safetensors_read_the_same(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]
) -> None:
    arrays = {name: np.zeros(shape, NUMPY_TYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    data = save(arrays, metadata=metadata or None)
    header = parse_header(data, len(data), "x")
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == tensors
    assert header.metadata == metadata


@given(
    tensors=st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(ITEM_BYTES)), SHAPES), max_size=8),
    metadata=st.dictionaries(st.text().filter(_is_utf8), st.text().filter(_is_utf8), max_size=3),
    align=st.sampled_from([8, 64, 4096]),
    seed=st.integers(0, 2**32),
)
def test_headers_that_we_write_read_back_here_and_in_safetensors(
    tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str], align: int, seed: int
) -> None:
    listed = [(name, dtype, shape) for name, (dtype, shape) in tensors.items()]
    header, starts = encode_header(listed, metadata, align)
    sizes = [int(np.prod(shape, dtype=np.int64)) * ITEM_BYTES[dtype] for _, dtype, shape in listed]
    body = np.random.default_rng(seed).integers(0, 255, sum(sizes), np.uint8).tobytes()
    assert len(header) % align == 0
    assert starts == [len(header) + sum(sizes[:i]) for i in range(len(sizes))]

    ours = parse_header(header + body, len(header) + len(body), "x")
    assert ours.data_start == len(header)
    assert ours.metadata == metadata
    theirs = dict(deserialize(header + body))
    assert theirs.keys() == ours.tensors.keys() == tensors.keys()
    for (name, dtype, shape), start, size_bytes in zip(listed, starts, sizes, strict=True):
        info = ours.tensors[name]
        assert (info.dtype, info.shape, info.start, info.size_bytes) == (dtype, shape, start, size_bytes)
        assert tuple(theirs[name]["shape"]) == shape
        assert bytes(theirs[name]["data"]) == (header + body)[start : start + size_bytes]


def test_a_file_on_disk_opens_in_safetensors_with_every_dtype(tmp_path: Path) -> None:
    tensors = [(f"t.{dtype}", dtype, (3, 2)) for dtype in ITEM_BYTES]
    header, starts = encode_header(tensors, {"format": "mlx"})
    body = bytes(sum(6 * ITEM_BYTES[dtype] for _, dtype, _ in tensors))
    path = tmp_path / "model.safetensors"
    path.write_bytes(header + body)
    assert [info.start for info in read_header(path).tensors.values()] == starts
    with safe_open(str(path), framework="np") as file:
        assert sorted(file.keys()) == sorted(name for name, _, _ in tensors)
        assert file.metadata() == {"format": "mlx"}
        for name, dtype, shape in tensors:
            assert file.get_slice(name).get_dtype() == dtype
            assert tuple(file.get_slice(name).get_shape()) == shape


def test_tensors_are_listed_by_place_and_not_by_name() -> None:
    data = header_bytes({"b": entry(), "a": entry(offsets=[16, 32])})
    assert list(parse_header(data, len(data) + 32, "x").tensors) == ["b", "a"]


def test_same_header_same_digest() -> None:
    one, _ = encode_header([("a", "U8", (4,))], {"k": "1", "j": "2"})
    two, _ = encode_header([("a", "U8", (4,))], {"j": "2", "k": "1"})
    other, _ = encode_header([("a", "U8", (2, 2))], {"j": "2", "k": "1"})
    assert one == two
    digests = [parse_header(header, len(header) + 4, "x").sha256 for header in (one, two, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("tensors", "metadata", "align", "message"),
    [
        ([("a", "U8", (1,)), ("a", "U8", (1,))], {}, 64, "but `a` comes twice"),
        ([("__metadata__", "U8", (1,))], {}, 64, "but `__metadata__` is reserved"),
        ([("__metadata__", "U8", (1,))], {"k": "v"}, 64, "but `__metadata__` is reserved"),
        ([("a", "Q4", (1,))], {}, 64, "need a known dtype to write, got `Q4` for tensor `a`"),
        ([("a", "U8", (-1,))], {}, 64, "got [-1] for tensor `a`"),
        ([("a", "U8", (2**62,)), ("b", "U8", (2**62,))], {}, 64, "need a file below 2**63 bytes"),
        ([("\ud800", "U8", (1,))], {}, 64, "need UTF-8 names and metadata"),
        ([], {}, 12, "multiple of 8, got 12"),
        ([], {}, 0, "multiple of 8, got 0"),
    ],
)
def test_headers_that_nobody_could_read_are_not_written(
    tensors: list[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str], align: int, message: str
) -> None:
    with pytest.raises(SurgeryError) as caught:
        encode_header(tensors, metadata, align)
    assert message in caught.value.message


NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, True, 1.0, 1e300, None]),
)
JSON_VALUES = st.recursive(
    st.one_of(NUMBERS, st.text(max_size=5), st.sampled_from(["F32", "U8", "BF16", "F4"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
NEARLY_RIGHT = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BF16", "I64", "F4", "F8_E8M0", "?"]) | JSON_VALUES,
        "shape": st.lists(st.integers(0, 3) | NUMBERS, max_size=3) | JSON_VALUES,
        "data_offsets": st.lists(st.integers(0, 40) | NUMBERS, min_size=2, max_size=2) | JSON_VALUES,
    }
)
ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "__metadata__"]) | st.text(max_size=4),
    NEARLY_RIGHT | JSON_VALUES,
    max_size=4,
)


def check_agreement(data: bytes) -> bool:
    """Parse, and return whether it was accepted; fails where safetensors would refuse it."""
    try:
        header = parse_header(data, len(data), "x")
    except SurgeryError as error:
        assert "\n" not in error.message
        return False
    for info in header.tensors.values():
        assert header.data_start <= info.start <= info.end <= len(data)
    try:
        theirs = dict(deserialize(data))
    except SafetensorError as error:
        raise AssertionError(f"accepted what safetensors refuses: {error}") from None
    assert theirs.keys() == header.tensors.keys()
    for name, info in header.tensors.items():
        assert tuple(theirs[name]["shape"]) == info.shape
        assert bytes(theirs[name]["data"]) == data[info.start : info.end]
    return True


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(entries=ENTRIES, body=st.binary(max_size=48))
@example(entries={"a": entry("F32", [2, 2], [0, 16])}, body=b"\0" * 16)
@example(entries={"a": entry("U8", [0], [0, 0])}, body=b"")
def test_any_header_is_refused_cleanly_or_lies_inside_the_file(entries: dict[str, Any], body: bytes) -> None:
    check_agreement(header_bytes(json.dumps(entries).encode()) + body)


@settings(max_examples=400)
@given(
    position=st.integers(0, 400),
    piece=st.binary(max_size=4) | st.sampled_from([b"-0", b"1e3", b"{", b'"', b",", b"\\u0061", b"[[", b" "]),
    cut=st.integers(0, 6),
    body_change=st.integers(-2, 2),
)
def test_any_edit_of_a_right_header_is_refused_cleanly_or_lies_inside_the_file(
    position: int, piece: bytes, cut: int, body_change: int
) -> None:
    header, _ = encode_header([("a.weight", "F32", (2, 3)), ("b.bias", "U8", (5,))], {"format": "mlx"}, 8)
    position %= len(header)
    edited = header[:position] + piece + header[position + cut :]
    if position >= 8:
        edited = header_bytes(edited[8:])
    check_agreement(edited + b"\0" * (29 + body_change))


def test_agreement_check_sees_accepted_headers() -> None:
    header, _ = encode_header([("a", "U8", (4,))])
    assert check_agreement(header + b"\0" * 4)
    assert not check_agreement(header + b"\0" * 5)
