"""Our kernels as the host calls them: sources put together, compiled once, dispatched over NumPy arrays."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import KernelName, Launch, Library

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "metal"
# Each file's kernels.
KERNELS = {
    "gather_embed": ["gather_embed"],
    "tied_logits": ["tied_logits"],
    "tied_topk": ["topk_blocks", "topk_merge", "topk_write"],
    "tied_logprob": ["logprob_blocks", "logprob_combine"],
    "requantize": ["requantize_affine", "requantize_dense"],
    "strided_copy": ["strided_copy"],
}
BLOCK = 256
MERGED_KEYS = 1024


def expanded(name: str, seen: set[str]) -> str:
    """A source with its own includes in their places, each once."""
    out = []
    for line in (SOURCES / name).read_text().splitlines():
        include = re.fullmatch(r'#include "metal/([\w.]+)"', line)
        if include is None:
            out += [] if line == "#pragma once" else [line + "\n"]
        elif include[1] not in seen:
            seen.add(include[1])
            out.append(expanded(include[1], seen))
    return "".join(out)


def source_text(name: str, types: tuple[str, str, str]) -> str:
    """What is compiled at run time: `types` are those of X, S and O."""
    head = "#include <metal_stdlib>\n#include <metal_simdgroup>\nusing namespace metal;\n"
    aliases = "".join(f"typedef {kind} {alias};\n" for kind, alias in zip(types, "XSO", strict=True))
    return head + aliases + expanded(f"{name}.metal", set())


@dataclass
class Kernels:
    """Compiled libraries by name and types."""

    folder: Path

    def __post_init__(self) -> None:
        self._libraries: dict[tuple[str, tuple[str, str, str]], Library] = {}

    def library(self, name: str, types: tuple[str, str, str]) -> Library:
        key = (name, types)
        if key not in self._libraries:
            kernels = [KernelName(kernel) for kernel in KERNELS[name]]
            self._libraries[key] = Library(
                self.folder, "_".join([name, *types]), source_text(name, types), kernels
            )
        return self._libraries[key]


def grid_for(count: int, each: int) -> int:
    return -(-count // each)


def head_shape(rows: int, cols: int, count: int, softcap: float) -> np.ndarray:
    return np.frombuffer(
        np.array([rows, cols, count], np.int32).tobytes() + np.float32(softcap).tobytes(), np.uint8
    )


@dataclass
class Table:
    """A matrix in MLX's affine format; scales and biases as stored, bfloat16 as its 16 bits."""

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int
    group: int
    dtype: str
    values: np.ndarray  # float64 truth

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def cols(self) -> int:
        return self.values.shape[1]


def gather_embed(
    library: Library,
    table: Table,
    ids: np.ndarray,
    token_map: np.ndarray | None,
    factor: float,
    out: np.ndarray,
) -> None:
    mapped = token_map is not None
    shape = np.array([table.rows, table.cols, len(token_map) if mapped else 0], np.int32).tobytes()
    parameters = np.frombuffer(shape + np.float32(factor).tobytes(), np.uint8)
    library.run(
        Launch(
            KernelName("gather_embed"),
            [ids, table.weight, table.scales, table.biases, token_map if mapped else ids, out, parameters],
            {5},
            (grid_for(table.cols, 16 * 32), len(ids), 1),
            (32, 1, 1),
            {0: table.bits, 1: table.group, 2: mapped},
        )
    )


def _head_constants(table: Table, count: int) -> dict[int, float]:
    return {0: table.bits, 1: table.group, 2: count == 1}


def _vector_groups(count: int) -> int:
    return 1 if count == 1 else grid_for(count, 4)


def tied_logits(
    library: Library, table: Table, h: np.ndarray, softcap: float, bias: np.ndarray | None, out: np.ndarray
) -> None:
    shape = head_shape(*table.values.shape, len(h), softcap)
    given = np.zeros(1, np.float32) if bias is None else bias
    library.run(
        Launch(
            KernelName("tied_logits"),
            [h, table.weight, table.scales, table.biases, out, shape, given],
            {4},
            (_vector_groups(len(h)), grid_for(table.rows, 8), 1),
            (64, 1, 1),
            {**_head_constants(table, len(h)), 3: bias is not None},
        )
    )


def tied_topk(
    library: Library,
    table: Table,
    h: np.ndarray,
    softcap: float,
    k: int,
    inverse_map: np.ndarray | None,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    count = len(h)
    blocks = grid_for(table.rows, BLOCK)
    kept = min(k, BLOCK)
    constants = {**_head_constants(table, count), 3: k, 4: inverse_map is not None}
    keys = np.zeros((count, blocks * kept), np.uint64)
    shape = head_shape(*table.values.shape, count, softcap)
    library.run(
        Launch(
            KernelName("topk_blocks"),
            [h, table.weight, table.scales, table.biases, keys, shape],
            {4},
            (_vector_groups(count), blocks, 1),
            (256, 1, 1),
            constants,
            seed,
        )
    )
    while keys.shape[1] > k:
        chunks = grid_for(keys.shape[1], MERGED_KEYS)
        merged = np.zeros((count, chunks * k), np.uint64)
        length = np.array([keys.shape[1]], np.int32)
        library.run(
            Launch(
                KernelName("topk_merge"),
                [keys, merged, length],
                {1},
                (chunks, count, 1),
                (256, 1, 1),
                constants,
                seed,
            )
        )
        keys = merged
    values, ids = np.zeros((count, k), np.float32), np.zeros((count, k), np.int32)
    size = np.array([count * k], np.int32)
    library.run(
        Launch(
            KernelName("topk_write"),
            [keys, size if inverse_map is None else inverse_map, values, ids, size],
            {2, 3},
            (grid_for(count * k, 32), 1, 1),
            (32, 1, 1),
            constants,
        )
    )
    return values, ids


def tied_logprob(
    library: Library, table: Table, h: np.ndarray, targets: np.ndarray, softcap: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    count = len(h)
    blocks = grid_for(table.rows, BLOCK)
    constants = _head_constants(table, count)
    partials = np.zeros((count, blocks, 2), np.float32)
    target_logits = np.zeros(count, np.float32)
    shape = head_shape(*table.values.shape, count, softcap)
    library.run(
        Launch(
            KernelName("logprob_blocks"),
            [h, table.weight, table.scales, table.biases, targets, partials, target_logits, shape],
            {5, 6},
            (_vector_groups(count), blocks, 1),
            (256, 1, 1),
            constants,
            seed,
        )
    )
    log_probs, log_sums = np.zeros(count, np.float32), np.zeros(count, np.float32)
    sizes = [np.array([blocks], np.int32), np.array([table.rows], np.int32)]
    library.run(
        Launch(
            KernelName("logprob_combine"),
            [partials, target_logits, targets, log_probs, log_sums, *sizes],
            {3, 4},
            (count, 1, 1),
            (32, 1, 1),
            constants,
            seed,
        )
    )
    return log_probs, log_sums


@dataclass
class Coding:
    """How a matrix is stored: dense where bits is 0."""

    dtype: str
    bits: int = 0
    group: int = 1


def requantize(
    library: Library,
    source: Coding,
    parts: list[np.ndarray],
    shape: tuple[int, int],
    target: Coding,
    columns: np.ndarray | None,
    rows: np.ndarray | None,
    dtypes: Mapping[str, type],
    seed: int,
) -> list[np.ndarray]:
    """Weight, or weight, scales and biases, of the target."""
    count = shape[0] if rows is None else len(rows)
    width = shape[1] if columns is None else len(columns)
    weight, scales, biases = (parts * 3)[:3]
    none = np.zeros(1, np.int32)
    indices = [none if columns is None else columns, none if rows is None else rows]
    sizes = np.array([*shape, count, width], np.int32)
    same = source == target
    constants = {0: source.bits, 1: source.group, 2: target.bits, 3: target.group}
    constants |= {4: columns is not None, 5: rows is not None, 6: same}
    if target.bits == 0:
        out = np.zeros((count, width), dtypes[target.dtype])
        library.run(
            Launch(
                KernelName("requantize_dense"),
                [weight, scales, biases, *indices, out, none, none, sizes],
                {5},
                (grid_for(width, 256), count, 1),
                (256, 1, 1),
                constants,
                seed,
            )
        )
        return [out]
    groups = width // target.group
    outs = [np.zeros((count, width * target.bits // 32), np.uint32)]
    outs += [np.zeros((count, groups), dtypes[target.dtype]) for _ in range(2)]
    library.run(
        Launch(
            KernelName("requantize_affine"),
            [weight, scales, biases, *indices, *outs, sizes],
            {5, 6, 7},
            (grid_for(groups, 4), count, 1),
            (128, 1, 1),
            constants,
            seed,
        )
    )
    return outs
