"""Types of the native module; see `csrc/bindings.cpp` and the other `csrc/bind_*.cpp`.

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
) -> None:
    """Decode rows to float32, take columns (-1: zero), encode them into the output buffers.

    `refine` searches for a better scale and bias of affine groups by least squares; no group
    gets a larger squared error by it. The bytes are the same on every instruction set and
    thread count.
    """

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
) -> None:
    """Fill out[rows] (float64) with the sums of squares of the rows.

    Affine and symmetric sources: of the real values code * scale + bias, not of their float32
    roundings; per group scale^2 * sum(code^2) + 2 * scale * bias * sum(code) + n * bias^2 in
    float64 with exact integer sums. Others: of the float32 values. 16 lanes (of groups, or of
    columns), then a tree: the same bits on every instruction set.
    """

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
) -> None:
    """Add the squares of the float32 values of each column to out[cols] (float64).

    Rows are added strictly in order, so tiles of rows may come in several calls.
    """

def solve_factor(
    hessian: NDArray[np.float32],
    damping: float,
    upper: NDArray[np.float32],
    *,
    isa: str | None = None,
    threads: int = 0,
) -> float:
    """Fill `upper` [K, K] with the upper Cholesky factor of the inverse of the damped Hessian [K, K].

    Returns the damping that it took. This and the other `solve_` functions give the same bytes on every
    instruction set and thread count; `threads` 0: one per processor. See `csrc/cpu/solve.h`.
    """

def solve_hessian(
    upper: NDArray[np.float32], hessian: NDArray[np.float32], *, isa: str | None = None, threads: int = 0
) -> None:
    """Fill `hessian` with the damped Hessian of which `upper` is the inverse factor."""

def solve_reconstruct(
    weight: NDArray[np.float32],
    hessian: NDArray[np.float32],
    kept: NDArray[np.int32],
    damping: float,
    out: NDArray[np.float32],
    *,
    isa: str | None = None,
    threads: int = 0,
) -> float:
    """Fill `out` [rows, K] with the least-squares weights of the kept columns; returns the damping."""

def solve_round(
    weight: NDArray[np.float32],
    upper: NDArray[np.float32],
    order: NDArray[np.int32] | None,
    encoding: Encoding,
    out_weight: _Buffer,
    out_scales: _Buffer,
    out_biases: _Buffer,
    *,
    isa: str | None = None,
    threads: int = 0,
) -> None:
    """Round [rows, K] to an affine encoding column by column, errors made up for by later columns.

    With an `order`, `upper` is in that order as well, and groups are fitted before the first column.
    """

class TokenTable:
    def __init__(self, tokens: list[str | None]) -> None: ...
    @property
    def num_ids(self) -> int: ...
    def add(self, token: str, id: int) -> bool: ...
    def find(self, token: str) -> int: ...
    def token(self, id: int) -> str | None: ...
    def tokens(self) -> list[str | None]: ...
    def starting_with(self, prefix: str) -> NDArray[np.int32]: ...
    def lengths(self) -> NDArray[np.int32]: ...
    def classes(self, table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None: ...
    def vocab_json(self, ids: NDArray[np.int32], keep: NDArray[np.bool_]) -> bytes: ...
    def merges_json(self, merges: NDArray[np.int32], pairs: bool, keep: NDArray[np.bool_]) -> bytes: ...

def scan_tokenizer(
    data: _Buffer, limit: int
) -> (
    tuple[TokenTable, NDArray[np.int32], NDArray[np.int32], bool, tuple[int, int], tuple[int, int]] | None
): ...
def read_pass(buffer: _Buffer, *, threads: int = 0, isa: str | None = None) -> tuple[float, int]:
    """Read a buffer of a multiple of 4096 bytes once: seconds, and the sum of its 32-bit words.

    `threads` 0: one per processor.
    """

def float_rate(*, threads: int = 0, isa: str | None = None) -> tuple[float, str]:
    """Float32 multiply-adds in registers: operations per second (two each), and the instructions."""

def int8_rate(*, threads: int = 0, isa: str | None = None) -> tuple[float, str]:
    """Multiply-adds of 8-bit integers in registers: operations per second (two each), and what did them."""

def equal_bytes(a: _Buffer, b: _Buffer) -> bool: ...
def cpu_features() -> dict[str, bool]: ...
def available_isas() -> list[str]: ...
def default_isa() -> str: ...
def probe_array(array: mx.array) -> int: ...
def build_info() -> dict[str, str]: ...

# The ops, documented in `gemma_surgery.ops`.
_Stream: TypeAlias = mx.Stream | mx.Device | mx.DeviceType | None

def gather_embed(
    ids: mx.array,
    token_map: mx.array | None,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    scale: float,
    group_size: int,
    bits: int,
    dtype: mx.Dtype | None,
    stream: _Stream,
) -> mx.array: ...
def tied_logits(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    softcap: float | None,
    group_size: int,
    bits: int,
    dtype: mx.Dtype | None,
    stream: _Stream,
) -> mx.array: ...
def tied_argmax(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    inverse_map: mx.array | None,
    softcap: float | None,
    group_size: int,
    bits: int,
    stream: _Stream,
) -> tuple[mx.array, mx.array]: ...
def tied_choice(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    ids: mx.array,
    softcap: float | None,
    group_size: int,
    bits: int,
    stream: _Stream,
) -> tuple[mx.array, mx.array]: ...
def tied_topk(
    h: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    k: int,
    inverse_map: mx.array | None,
    softcap: float | None,
    group_size: int,
    bits: int,
    stream: _Stream,
) -> tuple[mx.array, mx.array]: ...
def tied_logprob(
    h: mx.array,
    targets: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    softcap: float | None,
    group_size: int,
    bits: int,
    stream: _Stream,
) -> tuple[mx.array, mx.array]: ...
def quantized_linear(
    x: mx.array,
    weight: mx.array,
    scales: mx.array,
    biases: mx.array,
    bias: mx.array | None,
    group_size: int,
    bits: int,
    activations: str,
    stream: _Stream,
) -> mx.array: ...
def requantize_arrays(
    weight: mx.array,
    scales: mx.array | None,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    columns: mx.array | None,
    rows: mx.array | None,
    target_group_size: int,
    target_bits: int,
    target_dtype: mx.Dtype | None,
    refine: bool,
    stream: _Stream,
) -> list[mx.array]: ...
def rms_norm(x: mx.array, weight: mx.array | None, eps: float, stream: _Stream) -> mx.array: ...
def add_rms_norm(
    h: mx.array, y: mx.array, weight: mx.array | None, eps: float, stream: _Stream
) -> mx.array: ...
def layer_norm(
    x: mx.array, weight: mx.array | None, bias: mx.array | None, eps: float, stream: _Stream
) -> mx.array: ...
def gelu_tanh(x: mx.array, stream: _Stream) -> mx.array: ...
def gated_gelu(gate: mx.array, up: mx.array, stream: _Stream) -> mx.array: ...
def linear(x: mx.array, weight: mx.array, bias: mx.array | None, stream: _Stream) -> mx.array: ...
def rope(x: mx.array, periods: mx.array, offset: int, stream: _Stream) -> mx.array: ...
def attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    scale: float,
    causal: bool,
    window: int,
    image_blocks: mx.array | None,
    mask: mx.array | None,
    stream: _Stream,
) -> mx.array: ...
def _set_cpu_options(isa: str, threads: int) -> None: ...
