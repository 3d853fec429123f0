"""Wall time of `gemma-surgery compress` as a ratio to `cp` of the same weights, alternating in one run.

Each round runs `cp`, `cp` followed by fsync, and `compress` (which flushes to the disk before it
returns), each into a fresh place, after the source was read into the page cache; how much of it really
was there is measured and printed. ``--cold`` adds one round with the source evicted. On virtual
machines that hand free memory back to the host, the first touch of memory dominates whatever allocates
much of it: ``--pretouch GIB`` takes that much memory and lets it go right before each timed run, so
that all start alike. ``--naive`` runs `naive_pipeline.py` on the token ids that `compress` kept.

Usage: ``python bench/compress_ratio.py MODEL [--runs 5] [--pretouch 8] [--naive] [--cold]``
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from machine import cached_fraction, describe_machine, evict, flush_files, pretouch, read_once

NAIVE = Path(__file__).with_name("naive_pipeline.py")
CP, CP_FSYNC, COMPRESS = "cp", "cp + fsync", "compress"
# The published pipeline saves a whole checkpoint per stage; one save at the end is the stronger rival.
PIPELINES = {"naive, one save": [], "naive, per stage": ["--save-stages"]}


@dataclass(frozen=True)
class Run:
    """One timed run: wall and processor seconds, peak memory of the process, and what it printed last.

    A peak below this script's own, about 30 MB, cannot be seen: a child starts from its parent's.
    """

    seconds: float
    user_seconds: float
    system_seconds: float
    peak_rss_bytes: int
    source_cached: float | None
    report: dict


def timed(command: list[str], then: Callable[[], None] | None = None) -> Run:
    """Run a command to its end, and `then` within the same clock.

    Raises:
        SystemExit: the command failed; its last lines are shown.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors)
        # wait4 and not wait: it gives the peak memory of this very process.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if then is not None:
            then()
        seconds = time.perf_counter() - start
        out.seek(0)
        errors.seek(0)
        lines = out.read().strip().splitlines()
        tail = "\n".join(errors.read().strip().splitlines()[-10:])
    if process.returncode != 0:
        sys.exit(f"need exit code 0, got {process.returncode} from `{' '.join(command)}`\n{tail}")
    report = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(seconds, usage.ru_utime, usage.ru_stime, peak, None, report)


class Bench:
    """The commands to compare, and the state of the machine that each of them starts from."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args = args
        self.work = work
        self.weights = sorted(args.model.glob("*.safetensors"))
        if not self.weights:
            sys.exit(f"need a folder with *.safetensors, got `{args.model}`")
        self.source_bytes = sum(file.stat().st_size for file in self.weights)
        gnu = b"GNU" in subprocess.run(["cp", "--version"], capture_output=True, check=False).stdout
        # A reflink copies nothing: it would make any copy look slow.
        self.copy = ["cp", "--reflink=never"] if gnu else ["cp"]
        self.output = work / "compressed"
        self.kept_ids = work / "kept-ids.txt"

    def prepare(self, target: Path, warm: bool) -> float | None:
        """Remove the last output, settle the disk, and bring memory and page cache into the stated state."""
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        if self.args.pretouch:
            pretouch(self.args.pretouch)
        for file in self.weights:
            (read_once if warm else evict)(file)
        shares = [cached_fraction(file) for file in self.weights]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known else None

    def run(self, what: str, warm: bool = True) -> Run:
        target = self.output if what == COMPRESS else self.work / "other"
        cached = self.prepare(target, warm)
        if what in (CP, CP_FSYNC):
            target.mkdir()
            command = [*self.copy, *map(str, self.weights), str(target)]
            then = (lambda: flush_files(target)) if what == CP_FSYNC else None
            run = timed(command, then)
        elif what == COMPRESS:
            command = [*self.args.command, "compress", str(self.args.model), "-o", str(target)]
            command += ["--recipe", self.args.recipe, "--overwrite", "--no-measure", "--json"]
            command += self.args.option
            run = timed(command)
        else:
            command = [sys.executable, str(NAIVE), str(self.args.model), "-o", str(target), *PIPELINES[what]]
            command += ["--kept-ids", str(self.kept_ids)] if self.kept_ids.exists() else []
            run = timed(command)
        print(
            f"  {what:<16} {run.seconds:8.3f} s wall {run.user_seconds:7.2f} user"
            f" {run.system_seconds:7.2f} sys  peak RSS {run.peak_rss_bytes / 1e6:8.1f} MB"
            + ("" if cached is None else f"  source cached {cached:4.0%}"),
            flush=True,
        )
        return Run(**{**asdict(run), "source_cached": cached})

    def remember_kept_ids(self) -> None:
        """Take the kept token ids from the compressed checkpoint, so that both keep the same ones."""
        import mlx.core as mx

        for file in sorted(self.output.glob("*.safetensors")):
            for name, array in mx.load(str(file)).items():
                if name.endswith(".token_map"):
                    ids = [index for index, row in enumerate(array.tolist()) if row]
                    self.kept_ids.write_text("\n".join(map(str, ids)))


def summary(runs: dict[str, list[Run]], source_bytes: int) -> dict:
    """Medians and ratios: the body of the last line."""
    medians = {what: statistics.median(run.seconds for run in done) for what, done in runs.items() if done}
    reports = [run.report for run in runs[COMPRESS]]
    output_bytes = reports[-1]["output_bytes"]
    peak = max(report["peak_anonymous_bytes"] for report in reports)
    result = {
        "source_file_bytes": source_bytes,
        "output_bytes": output_bytes,
        "plan_sha256": reports[-1]["plan_sha256"],
        "median_seconds": medians,
        "seconds": {what: [run.seconds for run in done] for what, done in runs.items()},
        "ratio_to_cp": medians[COMPRESS] / medians[CP],
        "ratio_to_cp_fsync": medians[COMPRESS] / medians[CP_FSYNC],
        "output_bytes_per_second": output_bytes / medians[COMPRESS],
        "peak_anonymous_bytes": peak,
        "peak_rss_bytes": max(run.peak_rss_bytes for run in runs[COMPRESS]),
        "naive": {},
    }
    for what in PIPELINES:
        if runs[what]:
            naive_peak = max(run.report["peak_anonymous_bytes"] or run.peak_rss_bytes for run in runs[what])
            result["naive"][what] = {
                "output_bytes": runs[what][-1].report["output_bytes"],
                "seconds_ratio": medians[what] / medians[COMPRESS],
                "peak_bytes": naive_peak,
                "memory_ratio": naive_peak / peak,
            }
    return result


def show(result: dict) -> None:
    """Print the summary for people."""
    for what, seconds in result["median_seconds"].items():
        ratios = " ".join(
            f"{seconds / result['median_seconds'][base]:6.2f}x {base}" for base in (CP, CP_FSYNC)
        )
        print(f"  {what:<16} {seconds:8.3f} s   {ratios}")
    print(f"  compress writes {result['output_bytes_per_second'] / 1e9:.2f} GB/s of output")
    print(f"  compress peaks at {result['peak_anonymous_bytes'] / 1e6:.1f} MB of anonymous memory")
    for what, naive in result["naive"].items():
        print(
            f"  {what}: {naive['seconds_ratio']:.1f}x the time of compress,"
            f" {naive['memory_ratio']:.1f}x its memory ({naive['peak_bytes'] / 1e6:.1f} MB)"
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a checkpoint")
    parser.add_argument("--runs", type=int, default=5, help="warm rounds (default 5)")
    parser.add_argument("--warmup", type=int, default=1, help="rounds before them, not counted (default 1)")
    parser.add_argument("--recipe", default="mobile")
    parser.add_argument(
        "--option", action="append", default=[], help="passed on to compress, e.g. --option=--threads=1"
    )
    parser.add_argument("--work", type=Path, help="folder for the outputs (default: beside MODEL)")
    parser.add_argument(
        "--pretouch", type=float, default=0, metavar="GIB", help="memory to touch before each run"
    )
    parser.add_argument(
        "--cold", action="store_true", help="add a round with the source evicted from the cache"
    )
    parser.add_argument("--naive", action="store_true", help="run the naive pipeline too, both ways")
    parser.add_argument("--naive-runs", type=int, default=1, help="how often (default 1: it is slow)")
    parser.add_argument("--executable", type=Path, help="another gemma-surgery than this environment's")
    args = parser.parse_args()
    args.command = [str(args.executable)] if args.executable else [sys.executable, "-m", "gemma_surgery"]
    args.model = args.model.resolve()
    return args


def main() -> None:
    args = parse()
    print("command:", " ".join(sys.argv))
    machine = describe_machine(args.model)
    versions = {}
    for package in ("gemma-surgery", "mlx", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "absent"
    for key, value in {**machine, **versions}.items():
        print(f"  {key}: {value}")
    with tempfile.TemporaryDirectory(dir=args.work or args.model.parent, prefix=".compress-ratio-") as work:
        bench = Bench(args, Path(work))
        print(f"source: {bench.source_bytes:,} bytes in {len(bench.weights)} files")
        print(f"copy: {' '.join(bench.copy)}")
        cold = {}
        if args.cold:
            print("cold (source evicted):")
            cold = {what: bench.run(what, warm=False).seconds for what in (CP, CP_FSYNC, COMPRESS)}
        runs: dict[str, list[Run]] = {what: [] for what in (CP, CP_FSYNC, COMPRESS, *PIPELINES)}
        for number in range(args.warmup + args.runs):
            counted = number >= args.warmup
            title = f"round {number - args.warmup + 1} of {args.runs}" if counted else "not counted"
            print(f"warm, {title}:")
            for what in (CP, CP_FSYNC, COMPRESS):
                run = bench.run(what)
                if counted:
                    runs[what].append(run)
        if args.naive:
            bench.remember_kept_ids()
            print("naive pipeline, warm:")
            for _ in range(args.naive_runs):
                for what in PIPELINES:
                    runs[what].append(bench.run(what))
        result = summary(runs, bench.source_bytes)
    print(f"medians of {args.runs}:")
    show(result)
    settings = {"recipe": args.recipe, "pretouch_gib": args.pretouch, "runs": args.runs, "cold_seconds": cold}
    print(json.dumps({**machine, "versions": versions, **settings, **result}))


if __name__ == "__main__":
    main()
