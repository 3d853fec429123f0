"""Writing behind the workers: nothing lost, memory bounded, errors surface, completion told once."""

from __future__ import annotations

import hashlib
import threading
import time

import numpy as np
import pytest

from gemma_surgery.surgery.encoding import Component
from gemma_surgery.surgery.plan import Placed
from gemma_surgery.surgery.stream import Clock, Output, PartStream
from gemma_surgery.surgery.write_behind import WriteBehind

BUFFER = 3 * 4096


class Memory:
    """A sink that keeps what it gets and knows how many writes ran at once."""

    def __init__(self, size_bytes: int, fail_at: int | None = None) -> None:
        self.data = bytearray(size_bytes)
        self.covered = np.zeros(size_bytes, np.uint8)
        self.fail_at = fail_at
        self.lock = threading.Lock()

    def write(self, file: str, offset: int, data: memoryview) -> None:
        time.sleep(0.0005)
        with self.lock:
            if self.fail_at is not None and offset >= self.fail_at:
                raise OSError("the disk is gone")
            self.data[offset : offset + len(data)] = data
            self.covered[offset : offset + len(data)] += 1


def parts_of(sizes: list[int], start: int) -> list[Placed]:
    placed = []
    for index, size in enumerate(sizes):
        placed.append(Placed(Component("weight", f"t{index}", "U8", (size,)), "f", start))
        start += size
    return placed


@pytest.mark.parametrize("num_buffers", [6, 12])
def test_interleaved_runs_land_where_they_belong(num_buffers: int) -> None:
    rng = np.random.default_rng(1)
    sizes = [1, 5000, 12288, 40_000, 4096, 7, 30_000, 1, 2]
    parts = parts_of(sizes, start=4000)
    bodies = [rng.integers(0, 256, size, np.uint8).tobytes() for size in sizes]
    sink = Memory(4000 + sum(sizes))
    told: list[str] = []
    with WriteBehind(sink, BUFFER, num_buffers) as writer:
        output = Output(writer, Clock(), lambda size: None)
        # The middle three grow together, as codes, scales and biases do.
        for group in ([0], [1], [2, 3, 4], [5], [6], [7, 8]):
            streams = [PartStream(output, parts[index]) for index in group]
            done = [0] * len(group)
            while any(done[i] < sizes[index] for i, index in enumerate(group)):
                for i, index in enumerate(group):
                    size = min(1 + int(rng.integers(1, 3000)), sizes[index] - done[i])
                    if size:
                        streams[i].reserve(size)[:] = bodies[index][done[i] : done[i] + size]
                        streams[i].advance()
                        done[i] += size
            hashes = [stream.finish() for stream in streams]
            assert hashes == [hashlib.sha256(bodies[index]).hexdigest() for index in group]
        output.flush(lambda: told.append("written"))
    assert told == ["written"]
    assert bytes(sink.data[4000:]) == b"".join(bodies)
    assert (sink.covered[4000:] == 1).all() and not sink.covered[:4000].any()


def test_completion_is_told_only_after_the_bytes_are_written() -> None:
    sink = Memory(100_000)
    seen: list[bool] = []
    with WriteBehind(sink, BUFFER, 6) as writer:
        output = Output(writer, Clock(), lambda size: None)
        stream = PartStream(output, parts_of([100_000], 0)[0])
        stream.append(memoryview(bytes(100_000)))
        output.flush(lambda: seen.append(bool(sink.covered.all())))
    assert seen == [True]


def test_a_failing_write_is_raised_and_completion_is_not_told() -> None:
    sink = Memory(200_000, fail_at=50_000)
    told: list[str] = []
    with pytest.raises(OSError, match="the disk is gone"), WriteBehind(sink, BUFFER, 6) as writer:
        output = Output(writer, Clock(), lambda size: None)
        stream = PartStream(output, parts_of([200_000], 0)[0])
        for _ in range(40):
            stream.append(memoryview(bytes(5_000)))
        output.flush(lambda: told.append("written"))
    assert told == []


def test_a_short_tensor_is_noticed() -> None:
    with WriteBehind(Memory(10), BUFFER, 6) as writer:
        stream = PartStream(Output(writer, Clock(), lambda size: None), parts_of([10], 0)[0])
        stream.append(memoryview(bytes(9)))
        with pytest.raises(RuntimeError, match="`t0`: 1 bytes fewer than planned"):
            stream.finish()
