"""Malformed headers: each is refused with its own one-line message."""

from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open
from small_checkpoints import entry, header_bytes

from gemma_surgery.checkpoint import encode_header, parse_header, read_header
from gemma_surgery.errors import SurgeryError

A = "`model.safetensors`"

# name -> (bytes of the file, message)
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty_file": (b"", f"need a safetensors file, got an empty one: {A}"),
    "shorter_than_the_length_field": (
        b"\x01\0\0",
        f"need at least 8 bytes for the header length, got 3 in {A}",
    ),
    "length_field_alone": (
        (16).to_bytes(8, "little"),
        f"need a header of 16 bytes, but {A} ends after 0 of them",
    ),
    "header_longer_than_the_file": (
        header_bytes({"a": entry()}, length=5000) + b"\0" * 16,
        f"need a header of 5,000 bytes, but {A} ends after 81 of them",
    ),
    "header_over_100_mb": (
        header_bytes(b"{}", length=100_000_001),
        f"need a header of at most 100,000,000 bytes, got 100,000,001 in {A}",
    ),
    "header_length_of_all_ones": (
        b"\xff" * 8 + b"{}",
        f"need a header of at most 100,000,000 bytes, got 18,446,744,073,709,551,615 in {A}",
    ),
    "no_header": (b"\0" * 8, f"need a header that starts with `{{`, got no header at all in {A}"),
    "header_does_not_start_with_a_brace": (
        header_bytes(b" {}"),
        f"need a header that starts with `{{`, got byte 0x20 in {A}",
    ),
    "byte_order_mark": (
        header_bytes(b"\xef\xbb\xbf{}"),
        f"need a header that starts with `{{`, got byte 0xef in {A}",
    ),
    "an_array_instead_of_an_object": (
        header_bytes(b"[]"),
        f"need a header that starts with `{{`, got byte 0x5b in {A}",
    ),
    "git_lfs_pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        f"need a safetensors file, got a Git LFS pointer in {A}",
    ),
    "invalid_utf8": (header_bytes(b'{"\xff":1}'), f"header of {A} is not UTF-8: byte 2 is 0xff"),
    "unterminated_json": (
        header_bytes(b'{"a":'),
        f"header of {A} is not valid JSON: expecting value at character 5",
    ),
    "two_json_documents": (
        header_bytes(b"{}{}"),
        f"header of {A} is not valid JSON: extra data at character 2",
    ),
    "nul_padding": (header_bytes(b"{}\0\0"), f"header of {A} is not valid JSON: extra data at character 2"),
    "nan": (header_bytes(b'{"a":NaN}'), f"header of {A} is not valid JSON: NaN is not a JSON number"),
    "single_surrogate": (
        header_bytes(b'{"\\ud800":1}'),
        f"header of {A} is not valid JSON: a string holds half of a surrogate pair",
    ),
    "control_character_in_a_name": (
        header_bytes(b'{"a\nb":1}'),
        f"header of {A} is not valid JSON: invalid control character at character 3",
    ),
    "nested_too_deeply": (
        header_bytes(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
        f"header of {A} is not usable JSON: nested too deeply",
    ),
    "number_of_5000_digits": (
        header_bytes(b'{"a":' + b"9" * 5000 + b"}"),
        f"header of {A} is not usable JSON: a number has too many digits",
    ),
    "duplicate_tensor": (
        header_bytes(b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":1}') + b"\0",
        f"header of {A} has the key `a` twice in one object",
    ),
    "duplicate_field": (
        header_bytes(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}') + b"\0",
        f"header of {A} has the key `dtype` twice in one object",
    ),
    "duplicate_metadata_key": (
        header_bytes(b'{"__metadata__":{"x":"1","x":"2"}}'),
        f"header of {A} has the key `x` twice in one object",
    ),
    "duplicate_through_an_escape": (
        header_bytes(b'{"a":1,"\\u0061":1}'),
        f"header of {A} has the key `a` twice in one object",
    ),
    "entry_is_a_number": (header_bytes({"a": 5}), f"need an object for tensor `a`, got 5 in {A}"),
    "entry_is_an_array": (
        header_bytes({"a": [1, 2]}),
        f"need an object for tensor `a`, got an array of 2 values in {A}",
    ),
    "missing_dtype": (
        header_bytes({"a": {"shape": [], "data_offsets": [0, 4]}}),
        f"tensor `a` has no `dtype` in {A}",
    ),
    "missing_shape": (
        header_bytes({"a": {"dtype": "F32", "data_offsets": [0, 4]}}),
        f"tensor `a` has no `shape` in {A}",
    ),
    "missing_offsets": (
        header_bytes({"a": {"dtype": "F32", "shape": []}}),
        f"tensor `a` has no `data_offsets` in {A}",
    ),
    "unknown_field": (
        header_bytes({"a": {**entry(), "stride": [2, 1]}}),
        f"tensor `a` has an unknown field `stride` in {A}",
    ),
    "unknown_dtype": (
        header_bytes({"a": entry("F128")}),
        f"need a known dtype, got `F128` for tensor `a` in {A}",
    ),
    "lower_case_dtype": (
        header_bytes({"a": entry("f32")}),
        f"need a known dtype, got `f32` for tensor `a` in {A}",
    ),
    "dtype_is_null": (
        header_bytes({"a": entry(None)}),
        f"need a known dtype, got null for tensor `a` in {A}",
    ),
    "shape_is_a_string": (
        header_bytes({"a": {"dtype": "U8", "shape": "4", "data_offsets": [0, 4]}}),
        f"need an array as shape, got `4` for tensor `a` in {A}",
    ),
    "negative_dimension": (
        header_bytes({"a": entry(shape=[-2, -2])}) + b"\0" * 16,
        f"need whole numbers from 0 to 2**63-1 in shape, got -2 for tensor `a` in {A}",
    ),
    "minus_zero_dimension": (
        header_bytes(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'),
        f"need whole numbers from 0 to 2**63-1 in shape, got -0.0 for tensor `a` in {A}",
    ),
    "boolean_dimension": (
        header_bytes({"a": entry("U8", [True], [0, 1])}) + b"\0",
        f"need whole numbers from 0 to 2**63-1 in shape, got true for tensor `a` in {A}",
    ),
    "fractional_dimension": (
        header_bytes({"a": entry("U8", [1.5], [0, 1])}) + b"\0",
        f"need whole numbers from 0 to 2**63-1 in shape, got 1.5 for tensor `a` in {A}",
    ),
    "dimension_in_exponent_form": (
        header_bytes(b'{"a":{"dtype":"U8","shape":[1e0],"data_offsets":[0,1]}}') + b"\0",
        f"need whole numbers from 0 to 2**63-1 in shape, got 1.0 for tensor `a` in {A}",
    ),
    "dimension_of_2_to_the_64": (
        header_bytes({"a": entry("U8", [2**64], [0, 0])}),
        f"need whole numbers from 0 to 2**63-1 in shape, got 18446744073709551616 for tensor `a` in {A}",
    ),
    "dimension_of_1000_digits": (
        header_bytes(b'{"a":{"dtype":"U8","shape":[1' + b"0" * 1000 + b'],"data_offsets":[0,1]}}') + b"\0",
        f"need whole numbers from 0 to 2**63-1 in shape, got a number of 3,322 bits for tensor `a` in {A}",
    ),
    "shape_product_wraps_to_the_range": (
        # 2**62 * 4 * 4 bytes are 0 modulo 2**64.
        header_bytes({"a": entry("F32", [2**62, 4], [0, 0])}),
        f"shape of tensor `a` overflows: need below 2**63 bytes in {A}",
    ),
    "shape_product_overflows_before_a_zero": (
        header_bytes({"a": entry("U8", [2**40, 2**40, 0], [0, 0])}),
        f"shape of tensor `a` overflows: need below 2**63 bytes in {A}",
    ),
    "offsets_are_an_object": (
        header_bytes({"a": {"dtype": "U8", "shape": [1], "data_offsets": {"0": 0}}}),
        f"need an array as data_offsets, got an object of 1 keys for tensor `a` in {A}",
    ),
    "three_offsets": (
        header_bytes({"a": entry(offsets=[0, 8, 16])}) + b"\0" * 16,
        f"need 2 data_offsets, got 3 for tensor `a` in {A}",
    ),
    "negative_offset": (
        header_bytes({"a": entry(offsets=[-16, 0])}),
        f"need whole numbers from 0 to 2**63-1 in data_offsets, got -16 for tensor `a` in {A}",
    ),
    "offsets_in_the_wrong_order": (
        header_bytes({"a": entry(offsets=[16, 0])}) + b"\0" * 16,
        f"need data_offsets in order, got [16, 0] for tensor `a` in {A}",
    ),
    "range_past_the_end": (
        header_bytes({"a": entry()}) + b"\0" * 15,
        f"tensor `a` runs past the end of {A}: need 16 bytes of data, got 15",
    ),
    "offset_near_2_to_the_63": (
        header_bytes({"a": entry(offsets=[2**63 - 17, 2**63 - 1])}) + b"\0" * 16,
        f"tensor `a` runs past the end of {A}: need 9,223,372,036,854,775,807 bytes of data, got 16",
    ),
    "range_smaller_than_the_shape": (
        header_bytes({"a": entry(offsets=[0, 12])}) + b"\0" * 12,
        f"tensor `a` of dtype F32 and shape [2, 2] needs 16 bytes, got a range of 12 in {A}",
    ),
    "range_larger_than_the_shape": (
        header_bytes({"a": entry(offsets=[0, 20])}) + b"\0" * 20,
        f"tensor `a` of dtype F32 and shape [2, 2] needs 16 bytes, got a range of 20 in {A}",
    ),
    "overlapping_tensors": (
        header_bytes({"a": entry(), "b": entry(offsets=[12, 28])}) + b"\0" * 28,
        f"tensor `b` overlaps tensor `a` by 4 bytes in {A}",
    ),
    "two_tensors_in_one_place": (
        header_bytes({"a": entry(), "b": entry()}) + b"\0" * 16,
        f"tensor `b` overlaps tensor `a` by 16 bytes in {A}",
    ),
    "empty_tensor_inside_another": (
        header_bytes({"a": entry(), "b": entry(shape=[0], offsets=[8, 8])}) + b"\0" * 16,
        f"tensor `b` overlaps tensor `a` by 8 bytes in {A}",
    ),
    "gap_between_tensors": (
        header_bytes({"a": entry(), "b": entry(offsets=[20, 36])}) + b"\0" * 36,
        f"gap of 4 bytes before tensor `b` in {A}",
    ),
    "gap_at_the_start": (
        header_bytes({"a": entry(offsets=[8, 24])}) + b"\0" * 24,
        f"gap of 8 bytes before tensor `a` in {A}",
    ),
    "bytes_after_the_last_tensor": (
        header_bytes({"a": entry()}) + b"\0" * 20,
        f"need the tensors to reach the end of {A}, got 4 bytes after the last one",
    ),
    "bytes_without_tensors": (
        header_bytes(b"{}") + b"\0" * 1500,
        f"need the tensors to reach the end of {A}, got 1.50 kB after the last one",
    ),
    "metadata_is_a_list": (
        header_bytes({"__metadata__": []}),
        f"need `__metadata__` to be an object of strings, got an array of 0 values in {A}",
    ),
    "metadata_holds_a_number": (
        header_bytes({"__metadata__": {"version": 1}}),
        f"need strings in `__metadata__`, got 1 at key `version` in {A}",
    ),
    "name_with_escapes_stays_on_one_line": (
        header_bytes({"a\n\x1b[31mb": 5}),
        f"need an object for tensor `a\\n\\x1b[31mb`, got 5 in {A}",
    ),
    "backtick_in_a_name_is_escaped": (
        header_bytes({"a`b": 5}),
        f"need an object for tensor `a\\x60b`, got 5 in {A}",
    ),
    "long_name_is_shortened": (
        header_bytes({"x" * 5000: 5}),
        f"need an object for tensor `{'x' * 160}...`, got 5 in {A}",
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_malformed_header_is_refused_with_its_own_line(name: str, tmp_path: Path) -> None:
    data, message = ATTACKS[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(SurgeryError) as caught:
        read_header(path)
    assert caught.value.message == message
    assert "\n" not in caught.value.message


def test_attack_messages_are_distinct() -> None:
    messages = [message for _, message in ATTACKS.values()]
    # One reason may be shown by several attacks, but never with the same words for different reasons.
    assert len(set(messages)) >= 50


@pytest.mark.parametrize("name", ATTACKS)
def test_whatever_safetensors_refuses_we_refuse_too(name: str, tmp_path: Path) -> None:
    # The other direction: the known ways in which we are stricter than the library, which takes the last of
    # two keys and skips white space that the format's description forbids.
    stricter = {
        "duplicate_metadata_key",
        "duplicate_tensor",
        "duplicate_through_an_escape",
        "header_does_not_start_with_a_brace",
        "unknown_field",
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(ATTACKS[name][0])
    try:
        with safe_open(str(path), framework="np"):
            accepted = True
    except (SafetensorError, OSError):
        accepted = False
    assert not accepted or name in stricter


def test_short_prefix_is_refused() -> None:
    header, _ = encode_header([("a", "U8", (4,))])
    with pytest.raises(SurgeryError, match=r"need a header of 56 bytes, got 42 in `x`"):
        parse_header(header[:50], len(header) + 4, "x")


def test_missing_file_folder_and_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="no such file or directory"):
        read_header(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(SurgeryError, match=r"folder\.safetensors`: is a directory"):
        read_header(tmp_path / "folder.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(SurgeryError, match="need a regular file"):
        read_header(tmp_path / "pipe.safetensors")


def test_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_bytes(b"{}"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root reads everything

        def deny(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", deny)
    with pytest.raises(SurgeryError, match=r"cannot read `.*model.safetensors`: permission denied"):
        read_header(path)


def test_announced_length_is_never_allocated(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(header_bytes(b"{}", length=90_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(SurgeryError):
            read_header(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_header_of_100_000_tensors_parses_in_seconds() -> None:
    tensors = [(f"model.layers.{i}.weight", "BF16", (2, 3)) for i in range(100_000)]
    header, starts = encode_header(tensors)
    begin = time.perf_counter()
    parsed = parse_header(header, len(header) + 12 * len(tensors), "x")
    # About 0.6 s on an idle core; ten times that still shows anything quadratic.
    assert time.perf_counter() - begin < 6
    assert [tensor.start for tensor in parsed.tensors.values()] == starts
