"""A small run of the writer, to be killed: `python writer_program.py TARGET [resume] [overwrite] [slow]`.

Twelve units of uneven size in two files, a side file and the manifest; nothing in them is random.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gemma_surgery.checkpoint import OutputFolder, encode_header

SIZES = [5, 70_000, 4096, 131_072, 1, 99_991, 8192, 200_003, 0, 65_536, 333, 150_000]
FILES = {"language.safetensors": range(7), "vision.safetensors": range(7, 12)}
FINGERPRINT = hashlib.sha256(repr((SIZES, FILES)).encode()).hexdigest()


def unit_bytes(number: int) -> bytes:
    return np.random.default_rng(number).integers(0, 255, SIZES[number], np.uint8).tobytes()


def expected_files() -> dict[str, bytes]:
    files = {
        name: encode_header([(f"t{n}", "U8", (SIZES[n],)) for n in units])[0]
        + b"".join(map(unit_bytes, units))
        for name, units in FILES.items()
    }
    return {**files, "tokenizer.json": b'{"version": "1.0"}', "surgery.json": b'{"complete": true}'}


def write(target: Path, *, resume: bool, overwrite: bool, threads: int = 2, pause: float = 0.0) -> list[str]:
    """Write the output, and return the units that an earlier run had finished."""
    with OutputFolder.begin(target, FINGERPRINT, sum(SIZES), resume=resume, overwrite=overwrite) as folder:
        work: list[Callable[[], None]] = []
        kept: list[str] = []
        for name, units in FILES.items():
            header, starts = encode_header([(f"t{n}", "U8", (SIZES[n],)) for n in units])
            weights = folder.create_weights(name, header, len(header) + sum(SIZES[n] for n in units))
            for n, start in zip(units, starts, strict=True):
                done = folder.completed.get(f"t{n}")
                if done and folder.recheck(name, [(start, SIZES[n])], str(done["sha256"])):
                    kept.append(f"t{n}")
                    continue

                def one(
                    n: int = n, start: int = start, write_at: Callable[..., None] = weights.write_at
                ) -> None:
                    data = unit_bytes(n)
                    half = len(data) // 2
                    write_at(start, data[:half])
                    time.sleep(pause)
                    write_at(start + half, data[half:])
                    folder.record(f"t{n}", {"sha256": hashlib.sha256(data).hexdigest()})

                work.append(one)
        run_all(work, threads)
        folder.write_file("tokenizer.json", b'{"version": "1.0"}')
        time.sleep(pause)
        folder.commit(b'{"complete": true}')
        return kept


def run_all(work: list[Callable[[], None]], threads: int) -> None:
    if threads == 1:
        for one in work:
            one()
        return
    workers = [
        threading.Thread(target=lambda i=i: [one() for one in work[i::threads]]) for i in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


STEPS = [
    "open",
    "write",
    "pwrite",
    "posix_fallocate",
    "ftruncate",
    "fsync",
    "rename",
    "replace",
    "unlink",
    "rmdir",
]


def write_until_killed(target: Path, step: int, *, overwrite: bool) -> bool:
    """Run `write` in a child that kills itself before its `step`-th call; return whether it did."""
    child = os.fork()
    if child == 0:
        calls = itertools.count()

        def killing(real: Callable[..., object]) -> Callable[..., object]:
            def call(*arguments: object, **options: object) -> object:
                if next(calls) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            return call

        for name in [*STEPS, "mkdir"]:
            if hasattr(os, name):
                setattr(os, name, killing(getattr(os, name)))
        with contextlib.suppress(BaseException):
            write(target, resume=False, overwrite=overwrite, threads=1)
            os._exit(0)
        os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the child failed by itself"
    return False


if __name__ == "__main__":
    words = sys.argv[2:]
    print("started", flush=True)
    write(
        Path(sys.argv[1]),
        resume="resume" in words,
        overwrite="overwrite" in words,
        pause=0.004 if "slow" in words else 0.0,
    )
    print("finished", flush=True)
