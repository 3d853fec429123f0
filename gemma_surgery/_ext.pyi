"""Types of the native module; see `csrc/bindings.cpp`.

A buffer is any C-contiguous NumPy array (or object with the buffer protocol): only its
size in bytes is checked against what the shapes say. ``ValueError`` names what is wrong.
"""

from typing import TypeAlias

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

_Buffer: TypeAlias = (
    NDArray[np.uint8]
    | NDArray[np.uint16]
    | NDArray[np.uint32]
    | NDArray[np.int8]
    | NDArray[np.int32]
    | NDArray[np.float16]
    | NDArray[np.float32]
    | NDArray[np.float64]
    | memoryview
    | bytes
    | bytearray
)

class Encoding:
    def __init__(self, dtype: str, bits: int = 0, group_size: int = 0, mode: str = "") -> None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int: ...
    @property
    def mode(self) -> str: ...
    def row_bytes(self, cols: int) -> tuple[int, int, int]: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

def requantize(
    weight: _Buffer,
    scales: _Buffer | None,
    biases: _Buffer | None,
    source: Encoding,
    rows: int,
    cols: int,
    columns: NDArray[np.int32] | None,
    target: Encoding,
    out_weight: _Buffer,
    out_scales: _Buffer | None,
    out_biases: _Buffer | None,
    *,
    isa: str | None = None,
    threads: int = 1,
    refine: bool = False,
) -> None: ...
def gather_rows(source: _Buffer, row_bytes: int, indices: NDArray[np.int32], out: _Buffer) -> None: ...
def gather_units(
    source: _Buffer,
    rows: int,
    row_bytes: int,
    unit_bytes: int,
    indices: NDArray[np.int32],
    out: _Buffer,
) -> None: ...
def row_square_sums(
    weight: _Buffer,
    scales: _Buffer | None,
    biases: _Buffer | None,
    source: Encoding,
    rows: int,
    cols: int,
    out: NDArray[np.float64],
    *,
    isa: str | None = None,
) -> None: ...
def column_square_sums(
    weight: _Buffer,
    scales: _Buffer | None,
    biases: _Buffer | None,
    source: Encoding,
    rows: int,
    cols: int,
    out: NDArray[np.float64],
    *,
    isa: str | None = None,
) -> None: ...
def equal_bytes(a: _Buffer, b: _Buffer) -> bool: ...
def cpu_features() -> dict[str, bool]: ...
def available_isas() -> list[str]: ...
def default_isa() -> str: ...
def probe_array(array: mx.array) -> int: ...
def build_info() -> dict[str, str]: ...
