"""How the bytes of each planned tensor are made from the source, tile by tile."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.dtypes import ITEM_BYTES
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.surgery.encoding import Component, Dense, Encoding, Quantized
from gemma_surgery.surgery.kernels import as_bytes, convert, gather_rows, gather_units
from gemma_surgery.surgery.plan import PlannedTensor
from gemma_surgery.surgery.selection import Indices, Selection
from gemma_surgery.surgery.stream import TILE_BYTES, Buffer, Clock, Output, PartStream
from gemma_surgery.surgery.tensor import Literal, RandomFill, RemovedInputs, SourceMatrix, Tensor
from gemma_surgery.surgery.transform import Values
from gemma_surgery.surgery.write_behind import WriteBehind

Floats: TypeAlias = "npt.NDArray[np.uint16] | npt.NDArray[np.uint32]"
Resolve: TypeAlias = "Callable[[Selection], Indices | None]"

# Part of what a seed means: another size would give other bytes, so it is no tuning constant.
RANDOM_BLOCK_BYTES = 1 << 20
# Scattered rows are read as one span up to this many times the bytes that are wanted.
MAX_SPAN_TILES = 4


class Producer:
    """One worker: reads source tiles, edits them, and streams them out. Not shared between threads."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        files: SourceFiles,
        writer: WriteBehind,
        resolve: Resolve,
        on_bytes: Callable[[int], None],
        solving: threading.Lock,
    ) -> None:
        self.clock = Clock()
        self._solving = solving
        self._stored = checkpoint.tensors
        self._files, self._resolve = files, resolve
        self._output = Output(writer, self.clock, on_bytes)
        self._in = [Buffer(TILE_BYTES) for _ in range(3)]
        self._span = Buffer(TILE_BYTES)

    def produce(self, planned: PlannedTensor) -> dict[str, str]:
        """Stream a tensor to the sink; returns the sha256 of each stored part by name.

        The last bytes are pending until `flush`.
        """
        streams = [PartStream(self._output, part) for part in planned.parts]
        tensor = planned.tensor
        if isinstance(tensor.origin, Literal):
            streams[0].append(memoryview(tensor.origin.data))
        elif isinstance(tensor.origin, RandomFill):
            self._random(tensor.origin, planned, streams)
        elif isinstance(tensor.origin, RemovedInputs):
            self._removed_inputs(tensor.origin, tensor, streams)
        elif tensor.method == "solve":
            self._solve(tensor, tensor.origin, streams)
        elif tensor.method == "transform":
            self._transform(planned, tensor.origin, streams)
        elif tensor.method == "requantize":
            self._requantize(planned, tensor.origin, streams)
        elif tensor.method == "gather_columns":
            self._gather_columns(planned, tensor.origin, streams)
        else:
            rows = self._resolve(tensor.rows)
            for part, stream in zip(tensor.origin.components, streams, strict=True):
                self._copy_rows(part, rows, tensor.rows.count, stream)
        return {
            part.component.name: stream.finish() for part, stream in zip(planned.parts, streams, strict=True)
        }

    def flush(self, then: Callable[[], None]) -> None:
        """Send what is pending to the disk; `then` is called when it is there."""
        self._output.flush(then)

    def _copy_rows(self, part: Component, rows: Indices | None, count: int, stream: PartStream) -> None:
        """A whole tensor, or a gather of its rows."""
        if rows is None:
            for start in range(0, part.size_bytes, TILE_BYTES):
                size = min(TILE_BYTES, part.size_bytes - start)
                self._read(part, start, stream.reserve(size))
                stream.advance()
            return
        if part.row_bytes == 0:
            return
        tile = max(1, TILE_BYTES // part.row_bytes)
        for first in range(0, count, tile):
            wanted = rows[first : first + tile]
            size = len(wanted) * part.row_bytes
            self._read_rows(part, wanted, stream.reserve(size))
            stream.advance()

    def _gather_columns(
        self, planned: PlannedTensor, source: SourceMatrix, streams: list[PartStream]
    ) -> None:
        tensor = planned.tensor
        columns = self._resolve(tensor.columns)
        assert columns is not None
        rows = self._resolve(tensor.rows)
        for part, stream in zip(source.components, streams, strict=True):
            units, unit_bytes = _units(part, source.encoding, columns)
            out_row_bytes = len(units) * unit_bytes
            tile = max(1, TILE_BYTES // max(part.row_bytes, out_row_bytes, 1))
            for first in range(0, tensor.rows.count, tile):
                count = min(tile, tensor.rows.count - first)
                data = self._tile(part, rows, first, count, self._in[0])
                with self.clock.measure("gather"):
                    out = stream.reserve(count * out_row_bytes)
                    gather_units(data, count, part.row_bytes, unit_bytes, units, out)
                stream.advance()

    def _requantize(self, planned: PlannedTensor, source: SourceMatrix, streams: list[PartStream]) -> None:
        tensor = planned.tensor
        rows, columns = self._resolve(tensor.rows), self._resolve(tensor.columns)
        parts, targets = source.components, tensor.components
        row_bytes = max(part.row_bytes for part in (*parts, *targets))
        tile = max(1, TILE_BYTES // row_bytes)
        for first in range(0, tensor.rows.count, tile):
            count = min(tile, tensor.rows.count - first)
            data = [
                as_bytes(self._tile(part, rows, first, count, buffer))
                for part, buffer in zip(parts, self._in, strict=False)
            ]
            outs = [
                as_bytes(stream.reserve(count * target.row_bytes))
                for target, stream in zip(targets, streams, strict=True)
            ]
            with self.clock.measure("requantize"):
                convert(data, source.encoding, (count, source.columns), columns, tensor.encoding, outs)
            for stream in streams:
                stream.advance()

    def _transform(self, planned: PlannedTensor, source: SourceMatrix, streams: list[PartStream]) -> None:
        tensor = planned.tensor
        assert tensor.transform is not None
        values = self._values(source, None, source.rows)
        float32 = Dense("F32")
        with self.clock.measure("transform"):
            result = tensor.transform.apply(values.reshape(source.shape))
        result = result.reshape(result.shape[0] if result.ndim else 1, -1)
        rows, columns = self._resolve(tensor.rows), self._resolve(tensor.columns)
        if rows is not None:
            result = np.where(rows[:, None] >= 0, result[np.maximum(rows, 0)], np.float32(0))
        outs = [np.empty(part.size_bytes, np.uint8) for part in tensor.components]
        result = np.ascontiguousarray(result, np.float32)
        width = result.shape[1]
        convert([as_bytes(result)], float32, (len(result), width), columns, tensor.encoding, outs)
        for out, stream in zip(outs, streams, strict=True):
            stream.append(out.data)

    def _solve(self, tensor: Tensor, source: SourceMatrix, streams: list[PartStream]) -> None:
        assert tensor.solve is not None
        rows, columns = self._resolve(tensor.rows), self._resolve(tensor.columns)
        # One Hessian at a time: those of a 4B model take 419 MB each, and the solver has threads of its own.
        with self._solving:
            values = self._values(source, rows, tensor.rows.count)
            with self.clock.measure("solve"):
                parts = tensor.solve.run(values, columns, tensor.encoding)
        for part, stream in zip(parts, streams, strict=True):
            stream.append(part.data)

    def _removed_inputs(self, removed: RemovedInputs, tensor: Tensor, streams: list[PartStream]) -> None:
        kept = self._resolve(removed.kept)
        source = removed.matrix
        assert kept is not None
        gone = np.setdiff1d(np.arange(source.columns), kept)
        total = np.zeros(source.rows)
        tile = max(1, TILE_BYTES // max(1, *(part.row_bytes for part in source.components)))
        for first in range(0, source.rows, tile):
            rows = np.arange(first, min(first + tile, source.rows), dtype=np.int32)
            lost = self._values(source, rows, len(rows))[:, gone].astype(np.float64)
            # Column after column: the order of the additions is the same on every machine.
            for column, mean in zip(lost.T, removed.mean[gone], strict=True):
                total[rows] += column * mean
        out = np.empty(tensor.size_bytes, np.uint8)
        values = total.astype(np.float32)
        convert([as_bytes(values)], Dense("F32"), (1, len(values)), None, tensor.encoding, [out])
        streams[0].append(out.data)

    def _values(self, source: SourceMatrix, rows: Indices | None, count: int) -> Values:
        """Decoded rows of a source matrix, float32 `[count, columns]`, read tile by tile."""
        values = np.empty((count, source.columns), np.float32)
        tile = max(1, TILE_BYTES // max(1, *(part.row_bytes for part in source.components)))
        for first in range(0, count, tile):
            out = values[first : first + tile]
            data = [
                as_bytes(self._tile(part, rows, first, len(out), buffer))
                for part, buffer in zip(source.components, self._in, strict=False)
            ]
            convert(data, source.encoding, out.shape, None, Dense("F32"), [as_bytes(out)])
        return values

    def _random(self, fill: RandomFill, planned: PlannedTensor, streams: list[PartStream]) -> None:
        encoding = planned.tensor.encoding
        for part, stream in zip(planned.parts, streams, strict=True):
            draw = _RandomBlocks(fill, planned.tensor.name, part.component, encoding)
            for start in range(0, part.component.size_bytes, RANDOM_BLOCK_BYTES):
                size = min(RANDOM_BLOCK_BYTES, part.component.size_bytes - start)
                stream.reserve(size)[:] = draw.block(start // RANDOM_BLOCK_BYTES, size)
                stream.advance()

    def _tile(
        self, part: Component, rows: Indices | None, first: int, count: int, buffer: Buffer
    ) -> memoryview:
        out = buffer.at_least(count * part.row_bytes)
        if rows is None:
            self._read(part, first * part.row_bytes, out)
        else:
            self._read_rows(part, rows[first : first + count], out)
        return out

    def _read(self, part: Component, start: int, out: memoryview) -> None:
        stored = self._stored[part.name]
        with self.clock.measure("read"):
            self._files.read_into(stored.file, stored.start + start, out)

    def _read_rows(self, part: Component, rows: Indices, out: memoryview) -> None:
        """Source rows in any order; -1 gives zeros. One read per span that is dense enough."""
        present = rows[rows >= 0]
        if not len(present):
            as_bytes(out)[:] = 0
            return
        low, high = int(present.min()), int(present.max()) + 1
        span_bytes = (high - low) * part.row_bytes
        if len(rows) > 1 and span_bytes > MAX_SPAN_TILES * max(TILE_BYTES, len(rows) * part.row_bytes):
            half = len(rows) // 2
            self._read_rows(part, rows[:half], out[: half * part.row_bytes])
            self._read_rows(part, rows[half:], out[half * part.row_bytes :])
            return
        span = self._span.at_least(span_bytes)
        self._read(part, low * part.row_bytes, span)
        with self.clock.measure("gather"):
            local = np.where(rows >= 0, rows - low, np.int32(-1)).astype(np.int32)
            gather_rows(span, part.row_bytes, local, out)


def _units(part: Component, encoding: Encoding, columns: Indices) -> tuple[Indices, int]:
    """Index list and size of the pieces that a column selection moves in one stored part."""
    item_bytes = ITEM_BYTES[part.dtype]
    if isinstance(encoding, Dense):
        return columns, item_bytes
    firsts = columns[:: encoding.group_size]
    groups = np.where(firsts >= 0, firsts // encoding.group_size, np.int32(-1)).astype(np.int32)
    packed_bytes = encoding.group_size * encoding.bits // 8
    return groups, packed_bytes if part.role == "weight" else item_bytes


class _RandomBlocks:
    """Reproducible random bytes of one stored part, addressed by block so that threads do not matter."""

    def __init__(self, fill: RandomFill, name: str, part: Component, encoding: Encoding) -> None:
        self._key = hashlib.sha256(f"{fill.seed}:{fill.stream or name}:{part.role}".encode()).digest()
        self._table = _value_table(fill, part, encoding)

    def block(self, index: int, size_bytes: int) -> memoryview:
        seed = int.from_bytes(hashlib.sha256(self._key + index.to_bytes(8, "little")).digest(), "little")
        raw = np.random.SFC64(seed).random_raw(
            -(-size_bytes // 8) if self._table is None else -(-size_bytes // 4)
        )
        words = raw.astype("<u8").view(np.uint8)
        if self._table is None:
            return words.data[:size_bytes]
        picks = words.view("<u2")[: size_bytes // self._table.itemsize]
        return as_bytes(self._table[picks]).data


def _value_table(fill: RandomFill, part: Component, encoding: Encoding) -> Floats | None:
    """65,536 values that a random 16-bit index picks from; None for packed codes, which are random bits."""
    if part.dtype == "U32":
        return None
    steps = (np.arange(65536) + 0.5) / 65536
    if isinstance(encoding, Quantized):
        levels = 2**encoding.bits - 1
        scale = fill.deviation / np.sqrt(levels * (levels + 2) / 12)
        factor = 1.0 if part.role == "scales" else -levels / 2
        values = scale * factor * (0.75 + 0.5 * steps)
    else:
        # The logistic quantile function: bell-shaped, and closed-form where the normal one is not.
        values = fill.deviation * np.log(steps / (1 - steps)) * (np.sqrt(3) / np.pi)
    return _encode_floats(values.astype(np.float32), part.dtype)


def _encode_floats(values: npt.NDArray[np.float32], dtype: str) -> Floats:
    out: Floats = np.empty(len(values), np.uint16 if ITEM_BYTES[dtype] == 2 else np.uint32)
    convert([as_bytes(values)], Dense("F32"), (1, len(values)), None, Dense(dtype), [as_bytes(out)])
    return out
