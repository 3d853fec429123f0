"""Opening a checkpoint: headers, config and what lies beside them. No weight is read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, NoReturn

from gemma_surgery.checkpoint.aliases import released_names
from gemma_surgery.checkpoint.header import Header, TensorInfo, read_header
from gemma_surgery.checkpoint.hub import is_repo_id, snapshot_folder
from gemma_surgery.checkpoint.index import (
    INDEX_NAME,
    check_against_index,
    choose_files,
    left_closed,
    read_weight_map,
)
from gemma_surgery.checkpoint.json_types import Json, os_reason, parse_json_object, read_small_file
from gemma_surgery.checkpoint.json_types import load_json_object as _load_json_object
from gemma_surgery.checkpoint.wording import listing, literal
from gemma_surgery.errors import SurgeryError

CONFIG_NAME = "config.json"
MANIFEST_NAME = "surgery.json"

# Weights in other formats: never carried along, and named when they are all there is.
OTHER_WEIGHTS = (".bin", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".ot", ".pt", ".pth", ".tflite")


class StoredTensor(NamedTuple):
    """One tensor of a checkpoint: bytes `[start, end)` of `file`, counted from the start of the file.

    `name` is as released, `name_in_file` as this writer spells it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    name_in_file: str

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes."""
        return self.end - self.start


@dataclass(frozen=True)
class Checkpoint:
    """A folder of weights and configuration, opened without reading weights.

    Attributes:
        path: the folder.
        files: weight file name -> checked header, sorted by name.
        tensors: tensor name -> place, by file and then by offset.
        config: `config.json`.
        metadata: `__metadata__` of all weight files together; the first file that has a key decides.
        side_files: names of the other files to carry along: tokenizer, processor, licence.
        notes: oddities that were tolerated, one sentence each.
        closed_files: weight files that were left out on request, and not opened.
    """

    path: Path
    files: dict[str, Header]
    tensors: dict[str, StoredTensor]
    config: dict[str, Json]
    metadata: dict[str, str]
    side_files: list[str]
    notes: list[str] = field(default_factory=list)
    config_sha256: str = ""
    closed_files: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data, without headers."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    @cached_property
    def fingerprint(self) -> str:
        """Sha256 over the weight files' names, sizes and headers and the config: no weight is read.

        It tells apart checkpoints of different shape or provenance, not two with the same headers.
        """
        digest = hashlib.sha256()
        for name in sorted(self.files):
            header = self.files[name]
            digest.update(f"{name}\0{header.file_bytes}\0{header.sha256}\n".encode())
        digest.update(f"{CONFIG_NAME}\0{self.config_sha256}\n".encode())
        return digest.hexdigest()

    def json_file(self, name: str) -> dict[str, Json]:
        """Read a JSON file of the folder that holds one object.

        Raises:
            SurgeryError: missing, unreadable, or not one strict JSON object.
        """
        return _load_json_object(self.path / name)

    def read(self, name: str) -> bytes:
        """Read one whole tensor, meant for small ones.

        Raises:
            SurgeryError: no such tensor, or the file cannot be read or has changed.
        """
        from gemma_surgery.checkpoint.reading import SourceFiles

        tensor = self.tensors.get(name)
        if tensor is None:
            _refuse(f"need tensor {literal(name)}, which `{self.path}` lacks")
        data = bytearray(tensor.size_bytes)
        with SourceFiles(self) as source:
            source.read_into(tensor.file, tensor.start, memoryview(data))
        return bytes(data)


def open_checkpoint(
    model: str | Path,
    revision: str | None = None,
    *,
    leave_out: Callable[[str], bool] | None = None,
) -> Checkpoint:
    """Open a checkpoint by its headers.

    Args:
        model: a folder, or a Hugging Face repository id `owner/name` (a folder of that name wins).
        revision: branch, tag or commit of a repository id.
        leave_out: names of tensors that the caller does without: a weight file that the index lists for
            nothing else is not opened and may be missing.

    Raises:
        SurgeryError: neither a folder nor a repository, no config, no usable weights, a malformed file, or an
            index that contradicts the files. One line each.
    """
    folder = _resolve(model, revision)
    names, hidden_weights = _list_folder(folder)
    notes: list[str] = []
    if hidden_weights:
        notes.append(f"ignored hidden files {listing(hidden_weights)}")
    if CONFIG_NAME not in names:
        _refuse(
            f"need `{CONFIG_NAME}` in `{folder}`, which lacks it",
            "give the folder that holds the config and the safetensors files",
        )
    config_bytes = read_small_file(folder / CONFIG_NAME)
    config = parse_json_object(config_bytes, CONFIG_NAME)

    weight_map = read_weight_map(folder)
    present = [name for name in names if name.endswith(".safetensors")]
    if not present:
        _refuse_without_weights(folder, names, weight_map is not None)
    closed = left_closed(weight_map, leave_out) if leave_out is not None else frozenset()
    if weight_map is not None:
        weight_map = {tensor: file for tensor, file in weight_map.items() if file not in closed}
    chosen, enforced_map = choose_files([file for file in present if file not in closed], weight_map, notes)
    files = {name: read_header(folder / name) for name in chosen}
    if enforced_map is not None:
        check_against_index(files, enforced_map, notes)
    return Checkpoint(
        path=folder,
        files=files,
        tensors=_merge_tensors(files),
        config=config,
        metadata=_merge_metadata(files),
        side_files=_side_files(folder, names, notes),
        notes=notes,
        config_sha256=hashlib.sha256(config_bytes).hexdigest(),
        closed_files=tuple(file for file in present if file in closed),
    )


def _resolve(model: str | Path, revision: str | None) -> Path:
    folder = Path(model).expanduser()
    try:
        status_is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError) as error:
        reason = os_reason(error) if isinstance(error, OSError) else str(error)
        _refuse(f"cannot open {literal(str(model))}: {reason}")
    if status_is_folder:
        if revision is not None:
            _refuse(f"need a repository id for revision {literal(revision)}, got the folder `{folder}`")
        return folder
    if exists:
        _refuse(f"need a folder, got the file `{folder}`", "give the folder that the file is in")
    if not isinstance(model, str) or not is_repo_id(model):
        _refuse(
            f"need a folder or a Hugging Face repository id, got {literal(str(model))}, which is neither",
            "check the path; a repository id looks like `google/gemma-3-4b-it`",
        )
    return snapshot_folder(model, revision)


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """Return the visible entries of a folder, sorted, and its hidden weight files."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        _refuse(f"cannot list `{folder}`: {os_reason(error)}")
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            _refuse(f"need file names in UTF-8, got {literal(name)} in `{folder}`")
    # macOS leaves `._model.safetensors` beside the real file on foreign disks.
    hidden = [name for name in names if name.startswith(".") and name.endswith(".safetensors")]
    return [name for name in names if not name.startswith(".")], hidden


def _refuse_without_weights(folder: Path, names: list[str], has_index: bool) -> NoReturn:
    others = [name for name in names if name.endswith(OTHER_WEIGHTS)]
    if others:
        _refuse(
            f"need weights as safetensors, got {listing(others)} in `{folder}`",
            "convert them first, e.g. by saving the model again with `safe_serialization=True`",
        )
    index = f", though `{INDEX_NAME}` names some" if has_index else ""
    _refuse(f"need a `*.safetensors` file in `{folder}`, which holds none{index}", "download the weights")


def _merge_tensors(files: dict[str, Header]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    released = released_names({name for header in files.values() for name in header.tensors})
    for file, header in files.items():
        for info in header.tensors.values():
            name = released[info.name]
            if name in tensors:
                _refuse(
                    f"tensor {literal(name)} is in both {literal(tensors[name].file)} and {literal(file)}",
                    "remove the file that does not belong to the checkpoint",
                )
            tensors[name] = _stored(info, name, file)
    if not tensors:
        _refuse(f"need at least one tensor, got none in {listing(list(files))}")
    return tensors


def _stored(info: TensorInfo, name: str, file: str) -> StoredTensor:
    return StoredTensor(name, info.dtype, info.shape, file, info.start, info.end, info.name)


def _merge_metadata(files: dict[str, Header]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for header in files.values():
        for key, text in header.metadata.items():
            merged.setdefault(key, text)
    return merged


def _side_files(folder: Path, names: list[str], notes: list[str]) -> list[str]:
    kept: list[str] = []
    foreign: list[str] = []
    for name in names:
        if name.endswith((".safetensors", ".index.json")) or name in {CONFIG_NAME, MANIFEST_NAME}:
            continue
        if name.lower() == "readme.md" or not (folder / name).is_file():
            continue
        (foreign if name.endswith(OTHER_WEIGHTS) else kept).append(name)
    if foreign:
        notes.append(f"ignored weights in another format: {listing(foreign)}")
    return kept


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("checkpoint", message, hint) from None
