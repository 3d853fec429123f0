"""What a profile costs: peak memory, and where its time goes.

Each measurement is a process of its own over the same short prompts, one layer in memory at a time:
``read`` brings every layer's weights into memory and does nothing else, ``pass`` takes all samples through
the layers, ``profile`` also measures them, ``hessians`` also collects the Hessians of every `down_proj`.
Their differences say what products, statistics and Hessians take. ``--ranks 2`` adds the time of `profile`
by one process and by several on loopback, in turn, each held to one core.

Usage: ``python bench/profile_memory.py MODEL [--samples 20] [--max-tokens 64] [--runs 1] [--ranks 2]``
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from machine import describe_machine

READ, PASS, PROFILE, HESSIANS = "read", "pass", "profile", "hessians"
KINDS = (READ, PASS, PROFILE, HESSIANS)
MIB = 1 << 20


@dataclass(frozen=True)
class Run:
    """One process: wall and processor seconds of the measured part; peak memory of all of it."""

    kind: str
    seconds: float
    cpu_seconds: float
    tokens: int
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    file_bytes: int = 0


def measure(kind: str, model: Path, count: int, max_tokens: int, output: Path) -> Run:
    """Do one kind of work in this process, the tokenizer included as in the command."""
    from gemma_surgery.calibration.activations import Activations
    from gemma_surgery.calibration.measure import Request, make_profile
    from gemma_surgery.calibration.passages import built_in_passages, passages_sha256
    from gemma_surgery.calibration.ranks import launched_ranks
    from gemma_surgery.calibration.samples import make_samples
    from gemma_surgery.calibration.stream import LayerStream
    from gemma_surgery.checkpoint.model_folder import open_checkpoint
    from gemma_surgery.cli.memory import PeakMemory
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models.gemma3.config import read_model_config

    ranks = launched_ranks()
    with PeakMemory() as memory:
        checkpoint = open_checkpoint(model)
        passages = built_in_passages()[:count]
        config = read_model_config(checkpoint)
        tokenizer = Tokenizer.load(checkpoint)
        samples = make_samples(passages, tokenizer, config, chat=True, max_tokens=max_tokens)
        begin, cpu = time.perf_counter(), time.process_time()
        if kind == READ:
            stream, nothing = LayerStream(checkpoint), Activations([], config.text.hidden_size, 0)
            for index in range(config.text.num_layers):
                stream.layer(index, [], nothing)
        elif kind == PASS:
            LayerStream(checkpoint).final_states(samples)
        else:
            patterns = ("*.mlp.down_proj",) if kind == HESSIANS else ()
            request = Request(passages_sha256(passages), patterns)
            make_profile(checkpoint, samples, output, request, ranks=ranks)
        seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Run(
        kind,
        seconds,
        cpu_seconds,
        sum(len(sample.tokens) for sample in samples),
        peak if sys.platform == "darwin" else peak * 1024,
        memory.peak_bytes,
        output.stat().st_size if ranks.rank == 0 and output.exists() else 0,
    )


def start(kind: str, arguments: argparse.Namespace, output: Path, **options: Any) -> subprocess.Popen[str]:
    """Begin one measurement in a process of its own, whose peak memory starts from this small one's."""
    line = [sys.executable, __file__, str(arguments.model), "--kind", kind, "--output", str(output)]
    line += ["--samples", str(arguments.samples), "--max-tokens", str(arguments.max_tokens)]
    process: subprocess.Popen[str] = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, **options)
    return process


def result(process: subprocess.Popen[str]) -> Run:
    """Wait for a measurement.

    Raises:
        SystemExit: it failed.
    """
    out, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement failed with exit code {process.returncode}")
    return Run(**json.loads(out.splitlines()[-1]))


def described(run: Run) -> str:
    """One line."""
    parts = [
        f"{run.kind:9} {run.seconds:7.1f} s wall {run.cpu_seconds:7.1f} s processor",
        f"peak {run.peak_rss_bytes / MIB:6.0f} MiB, anonymous {run.peak_anonymous_bytes / MIB:6.0f} MiB",
        f"{run.tokens} tokens",
        f"file {run.file_bytes / MIB:.0f} MiB",
    ]
    return "  ".join(parts)


def best(runs: list[Run]) -> Run:
    """The fastest: nothing that disturbs a run makes it faster."""
    return min(runs, key=lambda run: run.seconds)


def timed_ranks(arguments: argparse.Namespace, folder: Path, size: int) -> list[Run]:
    """One run of `profile` by `size` processes, each held to a core of its own where the system can."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(size)]
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{each.getsockname()[1]}"] for each in sockets]))
    for each in sockets:
        each.close()
    processes = []
    for rank in range(size):
        variables = {"MLX_HOSTFILE": str(hosts), "MLX_RANK": str(rank)} if size > 1 else {}
        pinned = (
            (lambda core=rank: os.sched_setaffinity(0, {core})) if hasattr(os, "sched_setaffinity") else None
        )
        processes.append(
            start(PROFILE, arguments, folder / "ranks", env={**os.environ, **variables}, preexec_fn=pinned)
        )
    return [result(process) for process in processes]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=20)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.kind is not None:
        run = measure(
            arguments.kind, arguments.model, arguments.samples, arguments.max_tokens, arguments.output
        )
        print(json.dumps(asdict(run)))
        return
    report: dict[str, object] = {"model": arguments.model.name, "mlx": metadata.version("mlx")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        report |= describe_machine(folder)
        for key, value in report.items():
            print(f"{key:12} {value}")
        runs = []
        for kind in arguments.only or KINDS:
            run = best([result(start(kind, arguments, folder / kind)) for _ in range(arguments.runs)])
            runs.append(run)
            print(described(run), flush=True)
        report["runs"] = [asdict(run) for run in runs]
        if arguments.ranks > 1:
            sizes = (1, arguments.ranks)
            rounds = [
                {size: timed_ranks(arguments, folder, size) for size in sizes} for _ in range(arguments.runs)
            ]
            walls = {size: min(max(run.seconds for run in each[size]) for each in rounds) for size in sizes}
            cpu = {size: min(max(run.cpu_seconds for run in each[size]) for each in rounds) for size in sizes}
            report["ranks"] = {
                "sizes": sizes,
                "seconds": [walls[size] for size in sizes],
                "cpu_seconds_per_rank": [cpu[size] for size in sizes],
                "speed_up": walls[1] / walls[arguments.ranks],
            }
            for size in sizes:
                print(
                    f"{size} ranks    {walls[size]:7.1f} s wall {cpu[size]:7.1f} s processor of the busiest"
                )
            print(f"speed-up {walls[1] / walls[arguments.ranks]:.2f}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
