"""Which of a folder's files make up the checkpoint: the index where it can be believed, else the files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from gemma_surgery.checkpoint.header import Header
from gemma_surgery.checkpoint.json_types import load_json_object
from gemma_surgery.checkpoint.wording import brief, listing, literal
from gemma_surgery.errors import SurgeryError

INDEX_NAME = "model.safetensors.index.json"

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_DELETE_HINT = f"download the folder again, or delete `{INDEX_NAME}` to use the files as they are"


def read_weight_map(folder: Path) -> dict[str, str] | None:
    """Read the index of a folder, or None where there is none.

    Returns:
        Tensor name -> file name; every file name is known to be a plain name, so it cannot leave the folder.

    Raises:
        SurgeryError: not JSON, no `weight_map`, or an entry that is not the name of a safetensors file here.
    """
    if not (folder / INDEX_NAME).is_file():
        return None
    weight_map = load_json_object(folder / INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict):
        _refuse(f"need an object `weight_map`, got {brief(weight_map)} in `{INDEX_NAME}`")
    checked: dict[str, str] = {}
    good: set[str] = set()
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            _refuse(f"need a file name, got {brief(file)} for tensor {literal(tensor)} in `{INDEX_NAME}`")
        if file not in good:
            _check_file_name(tensor, file)
            good.add(file)
        checked[tensor] = file
    return checked


def left_closed(weight_map: Mapping[str, str] | None, leave_out: Callable[[str], bool]) -> frozenset[str]:
    """Weight files that the index lists for nothing but tensors that the caller leaves out.

    None are left closed when there is no index to tell, or when nothing else would remain.
    """
    if weight_map is None:
        return frozenset()
    files = frozenset(weight_map.values())
    wanted = frozenset(file for tensor, file in weight_map.items() if not leave_out(tensor))
    return files - wanted if wanted else frozenset()


def choose_files(
    present: list[str], weight_map: Mapping[str, str] | None, notes: list[str]
) -> tuple[list[str], Mapping[str, str] | None]:
    """Decide which files are read, and whether the index still counts.

    Args:
        present: safetensors file names in the folder, sorted, at least one.
        weight_map: from `read_weight_map`.
        notes: gains a sentence for each oddity.

    Returns:
        File names, sorted, and the weight map if it is to be enforced.

    Raises:
        SurgeryError: some of the shards are missing.
    """
    if weight_map is not None:
        listed = sorted(set(weight_map.values()))
        missing = [file for file in listed if file not in present]
        if listed and not missing:
            unlisted = [file for file in present if file not in set(listed)]
            if unlisted:
                notes.append(f"ignored {listing(unlisted)}: not named by `{INDEX_NAME}`")
            return listed, weight_map
        if len(missing) < len(listed):
            _refuse(
                f"need {len(listed):,} weight files by `{INDEX_NAME}`, but {listing(missing)}"
                f" {'is' if len(missing) == 1 else 'are'} missing",
                _DELETE_HINT,
            )
        what = f"it names {listing(listed)}, which the folder lacks" if listed else "it names no file"
        notes.append(f"ignored a stale `{INDEX_NAME}`: {what}; used {listing(present)}")
    _check_shards(present)
    return present, None


def check_against_index(files: Mapping[str, Header], weight_map: Mapping[str, str], notes: list[str]) -> None:
    """Compare the index with the headers of the files that it names.

    Raises:
        SurgeryError: a tensor is not in the file that the index names for it.
    """
    for tensor, file in weight_map.items():
        if tensor not in files[file].tensors:
            others = [name for name, header in files.items() if tensor in header.tensors]
            found = f"it is in {literal(others[0])}" if others else "no file has it"
            _refuse(
                f"`{INDEX_NAME}` names {literal(file)} for tensor {literal(tensor)}, but {found}",
                _DELETE_HINT,
            )
    extra = [name for header in files.values() for name in header.tensors if name not in weight_map]
    if extra:
        notes.append(f"used {len(extra):,} tensors that `{INDEX_NAME}` does not name: {listing(extra)}")


def _check_file_name(tensor: str, file: str) -> None:
    shown = f"{literal(file)} for tensor {literal(tensor)} in `{INDEX_NAME}`"
    if file in {"", ".", ".."} or "/" in file or "\\" in file or "\0" in file or re.match("[A-Za-z]:", file):
        _refuse(f"need the name of a file inside the folder, got {shown}")
    if file.startswith("."):
        _refuse(f"need the name of a visible file, got {shown}")
    if not file.endswith(".safetensors"):
        _refuse(f"need a safetensors file, got {shown}")


def _check_shards(present: list[str]) -> None:
    """Refuse `x-00001-of-00003` without its siblings: half a download would open as a smaller model."""
    numbers: dict[tuple[str, int], set[int]] = {}
    for file in present:
        match = _SHARD.fullmatch(file)
        if match:
            key = (match["stem"], int(match["count"]))
            numbers.setdefault(key, set()).add(int(match["number"]))
    for (stem, count), have in numbers.items():
        missing = next((number for number in range(1, count + 1) if number not in have), None)
        if missing is not None:
            absent = f"{stem}-{missing:05d}-of-{count:05d}.safetensors"
            _refuse(
                f"need {count:,} weight files named {literal(stem + '-*')}, but {literal(absent)} is missing",
                "download the folder again",
            )


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("checkpoint", message, hint) from None
