"""`surgery.json`: what was done, to what, and the hash of every result. Written last, it means "complete"."""

from __future__ import annotations

import json

from gemma_surgery import __version__
from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import MANIFEST_NAME, Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.draft import JsonObject, StepReport
from gemma_surgery.surgery.plan import Plan

FORMAT_VERSION = 1


def build_manifest(plan: Plan, tensors: dict[str, dict[str, str]], files: dict[str, str]) -> bytes:
    """The manifest's bytes; they depend on the plan and the results alone.

    Args:
        plan: the executed plan.
        tensors: sha256 of every stored part, by logical tensor name and part name.
        files: sha256 of every side file by name.
    """
    entries: JsonObject = {}
    for planned in plan.tensors:
        hashes = tensors[planned.tensor.name]
        for part in planned.parts:
            entries[part.component.name] = {
                "file": part.file,
                "sha256": hashes[part.component.name],
                "lossless": planned.tensor.lossless,
            }
    source: JsonObject = {
        "fingerprint": plan.source.fingerprint,
        "tensor_bytes": plan.source_bytes,
        "module_bytes": _module_bytes(plan.source),
        "files": {name: header.file_bytes for name, header in sorted(plan.source.files.items())},
    }
    document: JsonObject = {
        "format_version": FORMAT_VERSION,
        "gemma_surgery_version": __version__,
        "recipe": plan.recipe,
        "plan_sha256": plan.sha256,
        "source": source,
        "tensor_bytes": plan.output_bytes,
        "steps": [_step(step) for step in plan.steps],
        "tensors": entries,
        "files": {name: files[name] for name in sorted(files)},
    }
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def read_manifest(checkpoint: Checkpoint) -> JsonObject:
    """The parsed manifest of a finished output.

    Raises:
        SurgeryError: the folder has none, or it is not one that this version reads.
    """
    if not (checkpoint.path / MANIFEST_NAME).is_file():
        raise SurgeryError(
            "verify",
            f"need a `{MANIFEST_NAME}` in {checkpoint.path}, got none",
            "only folders written by `gemma-surgery compress` can be verified; use `inspect` for others",
        )
    document = checkpoint.json_file(MANIFEST_NAME)
    if document.get("format_version") != FORMAT_VERSION:
        raise SurgeryError(
            "verify",
            f"need format_version {FORMAT_VERSION}, got {document.get('format_version')!r} "
            f"in `{MANIFEST_NAME}`",
            "install the version of gemma-surgery that wrote it",
        )
    for key in ("recipe", "tensors", "files", "source"):
        if not isinstance(document.get(key), dict):
            raise SurgeryError("verify", f"need an object under `{key}`, got none in `{MANIFEST_NAME}`")
    return document


def entry(manifest: JsonObject, section: str) -> JsonObject:
    """A section of the manifest that `read_manifest` checked to be an object."""
    value: Json = manifest[section]
    assert isinstance(value, dict)
    return value


def _step(report: StepReport) -> JsonObject:
    """A step as in the plan, and its table: the plan's hash does not cover the latter."""
    line = report.to_json()
    if report.table:
        line["table"] = [list(row) for row in report.table]
    return line


def _module_bytes(source: Checkpoint) -> JsonObject:
    """Tensor bytes of the source by module path, up to the first layer number."""
    total: dict[str, int] = {}
    for tensor in source.tensors.values():
        path = tensor.name.rsplit(".", 1)[0].split(".")
        numbers = [index for index, part in enumerate(path) if part.isdigit()]
        module = ".".join(path[: numbers[0]] if numbers else path)
        total[module] = total.get(module, 0) + tensor.size_bytes
    return {module: total[module] for module in sorted(total)}
