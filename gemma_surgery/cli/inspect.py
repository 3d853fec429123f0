"""`inspect`: the anatomy of a checkpoint, from headers alone."""

from __future__ import annotations

import math

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli import options
from gemma_surgery.cli.console import megabytes, out, print_json, print_table, size
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import stored_bytes


def command(model: options.Model, revision: options.Revision = None, json: options.Json = False) -> None:
    """Show components, encodings, bytes and oddities; reads no weights."""
    checkpoint = open_checkpoint(model, revision)
    family = Gemma3(checkpoint.config)
    components: dict[str, dict[str, int]] = {}
    encodings: dict[str, dict[str, int]] = {}
    matrices = logical_matrices(checkpoint)
    for matrix in matrices.values():
        part = family.component(matrix.name)
        size_bytes = stored_bytes(matrix.name, matrix.shape, matrix.encoding)
        entry = components.setdefault(part, {"tensors": 0, "parameters": 0, "size_bytes": 0})
        entry["tensors"] += len(matrix.components)
        entry["parameters"] += math.prod(matrix.shape)
        entry["size_bytes"] += size_bytes
        kinds = encodings.setdefault(part, {})
        kinds[matrix.encoding.describe()] = kinds.get(matrix.encoding.describe(), 0) + size_bytes
    oddities = [*checkpoint.notes, *family.problems(matrices)]
    if family.head in matrices:
        oddities.append(
            f"`{family.head}` is stored beside the tied embedding (step `tie_head` drops a duplicate)"
        )
    if json:
        rows = [
            {
                "component": part,
                **entry,
                "bits_per_weight": _bits(entry),
                "encodings": encodings[part],
            }
            for part, entry in components.items()
        ]
        print_json(
            {
                "model_type": checkpoint.config.get("model_type"),
                "fingerprint": checkpoint.fingerprint,
                "tensors": len(checkpoint.tensors),
                "total_bytes": checkpoint.size_bytes,
                "components": rows,
                "side_files": checkpoint.side_files,
                "oddities": oddities,
            }
        )
        return
    print_table(
        str(checkpoint.path),
        [("component", "left"), ("tensors", "right"), ("parameters", "right"), ("MB", "right"),
         ("bits/weight", "right"), ("stored as", "left")],
        [
            (
                part,
                f"{entry['tensors']:,}",
                f"{entry['parameters']:,}",
                megabytes(entry["size_bytes"]),
                f"{_bits(entry):.2f}",
                ", ".join(sorted(encodings[part], key=lambda kind: -encodings[part][kind])),
            )
            for part, entry in components.items()
        ],
    )  # fmt: skip
    out().print(f"{len(checkpoint.tensors):,} tensors, {size(checkpoint.size_bytes)}")
    out().print(f"files: {', '.join(checkpoint.files)}")
    for oddity in oddities:
        out().print(f"note: {oddity}")


def _bits(entry: dict[str, int]) -> float:
    return round(entry["size_bytes"] * 8 / max(1, entry["parameters"]), 3)
