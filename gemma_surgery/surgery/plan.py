"""The frozen draft: for every stored tensor its place in the output files, exact to the byte."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from gemma_surgery.checkpoint.header import encode_header
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.anatomy import quantization_block
from gemma_surgery.surgery.draft import Draft, GeneratedFile, JsonObject, MustBeEqual, StepReport
from gemma_surgery.surgery.encoding import Component
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.tensor import SourceMatrix, Tensor

# MLX's and Hugging Face's habit: files of at most 5 GiB.
SHARD_BYTES = 5 << 30
INDEX_NAME = "model.safetensors.index.json"


@dataclass(frozen=True)
class Placed:
    """One stored tensor of the output and where its bytes go."""

    component: Component
    file: str
    start: int


@dataclass(frozen=True)
class PlannedTensor:
    """A logical tensor, the places of its stored parts, and the last step that edited it."""

    tensor: Tensor
    parts: tuple[Placed, ...]
    editor: str = ""


@dataclass(frozen=True)
class PlannedFile:
    """One weights file: its finished header and its exact size."""

    name: str
    header: bytes
    size_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything the pass will do, as data.

    `recipe` is kept with the result; `sha256` identifies source, recipe and every edit.
    """

    source: Checkpoint
    recipe: JsonObject
    tensors: tuple[PlannedTensor, ...]
    files: tuple[PlannedFile, ...]
    documents: dict[str, bytes]
    generated: dict[str, GeneratedFile]
    copied: tuple[str, ...]
    config: JsonObject
    requirements: tuple[MustBeEqual, ...]
    steps: tuple[StepReport, ...]

    @property
    def source_bytes(self) -> int:
        """Tensor bytes of the source."""
        return self.source.size_bytes

    @property
    def output_bytes(self) -> int:
        """Tensor bytes of the output."""
        return sum(planned.tensor.size_bytes for planned in self.tensors)

    @property
    def rankings(self) -> list[Ranking]:
        """Scores to compute from the weights before the pass, each once."""
        wanted = (ranking for planned in self.tensors for ranking in planned.tensor.rankings)
        return list(dict.fromkeys(wanted))

    def seconds_by_step(
        self, tensor_seconds: Mapping[str, float], phase_seconds: Mapping[str, float]
    ) -> dict[str, float]:
        """Seconds per step: checks and scores to the steps that asked for them, tensors to their last editor.

        Args:
            tensor_seconds: worker seconds by tensor.
            phase_seconds: wall seconds of the phases `checks` and `scores`.
        """
        total = {step.step: 0.0 for step in self.steps}
        ranked = {planned.editor for planned in self.tensors if planned.tensor.rows.rankings}
        for planned in self.tensors:
            if planned.editor:
                total[planned.editor] += tensor_seconds.get(planned.tensor.name, 0.0)
        for asking, phase in (({r.step for r in self.requirements}, "checks"), (ranked, "scores")):
            for step in asking & set(total):
                total[step] += phase_seconds.get(phase, 0.0) / len(asking)
        return total

    @cached_property
    def as_json(self) -> JsonObject:
        """The plan as data; `plan_sha256` is the hash of the rest."""
        body: JsonObject = {
            "source_fingerprint": self.source.fingerprint,
            "recipe": self.recipe,
            "source_bytes": self.source_bytes,
            "output_bytes": self.output_bytes,
            "steps": [step.to_json() for step in self.steps],
            "requirements": [requirement.to_json() for requirement in self.requirements],
            "files": [{"name": file.name, "size_bytes": file.size_bytes} for file in self.files],
            "documents": {name: _digest(data) for name, data in sorted(self.documents.items())},
            "generated": {name: file.digest for name, file in sorted(self.generated.items())},
            "copied": list(self.copied),
            "tensors": [
                {**planned.tensor.to_json(), "file": planned.parts[0].file, "start": planned.parts[0].start}
                for planned in self.tensors
            ],
        }
        canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return {"plan_sha256": _digest(canonical.encode()), **body}

    @property
    def sha256(self) -> str:
        """Identity of the plan: same source and same recipe give the same hash."""
        return str(self.as_json["plan_sha256"])


def freeze(draft: Draft, recipe: JsonObject) -> Plan:
    """Fix the layout of the output files.

    Raises:
        SurgeryError: the steps left no tensors.
    """
    if not draft.tensors:
        raise SurgeryError("plan", "need at least one tensor, got a recipe that drops all of them")
    ordered = [draft.tensors[name] for name in sorted(draft.tensors, key=natural_key)]
    groups = _by_file(ordered, draft)
    planned, files = [], []
    for name, tensors in groups.items():
        header, starts = encode_header(
            [(part.name, part.dtype, part.shape) for tensor in tensors for part in tensor.components],
            draft.metadata,
        )
        places = iter(starts)
        for tensor in tensors:
            parts = tuple(Placed(part, name, next(places)) for part in tensor.components)
            planned.append(PlannedTensor(tensor, parts, draft.editors.get(id(tensor.origin), "")))
        files.append(PlannedFile(name, header, len(header) + sum(tensor.size_bytes for tensor in tensors)))
    config = _with_quantization(draft)
    documents = {"config.json": _json_bytes(config)}
    documents |= {name: _json_bytes(document) for name, document in draft.documents.items()}
    if len(files) > 1 or draft.place is not None:
        documents[INDEX_NAME] = _index(planned)
    made = set(documents) | set(draft.generated)
    copied = tuple(name for name in draft.source.side_files if name not in made and name not in draft.omitted)
    return Plan(
        draft.source,
        recipe,
        tuple(planned),
        tuple(files),
        documents,
        dict(draft.generated),
        copied,
        config,
        tuple(draft.requirements),
        tuple(draft.reports),
    )


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts `layers.2` before `layers.10`."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name))


def _by_file(tensors: list[Tensor], draft: Draft) -> dict[str, list[Tensor]]:
    if draft.place is not None:
        groups: dict[str, list[Tensor]] = {}
        for tensor in tensors:
            groups.setdefault(draft.place(tensor.name), []).append(tensor)
        return {name: groups[name] for name in sorted(groups)}
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.size_bytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.size_bytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }


def _with_quantization(draft: Draft) -> JsonObject:
    """The config with the `quantization` block that the encodings imply, in both places that loaders read."""
    config = dict(draft.config)
    block = quantization_block(draft.tensors.values())
    for key in ("quantization", "quantization_config"):
        if block is None:
            config.pop(key, None)
        elif key in config or "quantization" not in draft.config:
            config[key] = block
    return config


def _index(planned: list[PlannedTensor]) -> bytes:
    entries = {part.component.name: part.file for item in planned for part in item.parts}
    sizes: JsonObject = {
        "total_size": sum(item.tensor.size_bytes for item in planned),
        "total_parameters": sum(
            math.prod(item.tensor.shape) for item in planned if isinstance(item.tensor.origin, SourceMatrix)
        ),
    }
    weight_map: JsonObject = {name: entries[name] for name in sorted(entries)}
    return _json_bytes({"metadata": sizes, "weight_map": weight_map})


def _json_bytes(document: JsonObject) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
