"""Kill `gemma-surgery compress` at random moments, resume it, and compare every byte with an undisturbed run.

A reference run gives the expected files and its duration. Then, for each round: start, SIGKILL after a
uniformly random share of that duration, sometimes kill the resumed run too, and let a last ``--resume``
finish. After each kill the target must be absent or complete; at the end every file of the output must have
the reference's sha256, nothing else may be left beside it, and the source must be as it was. Rounds whose
process ended before its kill are repeated, so every counted round was killed.

Usage: ``python tools/kill_resume.py MODEL [--recipe mobile] [--runs 20] [--seed 0] [--hash-source]``
Exit code 1 on any difference; the last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 8 << 20
SECOND_KILL_PROBABILITY = 0.5
LONGEST_HEADER_BYTES = 100 << 20


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def folder_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by relative path; links are hashed as their target."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir())
    return {str(path.relative_to(folder)): sha256(path) for path in files}


def source_state(folder: Path, whole: bool) -> dict[str, tuple[int, int, str]]:
    """Return size, modification time and a hash of each source file: of the header, or of all of it."""
    state = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        info = path.stat()
        if whole or path.suffix != ".safetensors":
            digest = sha256(path)
        else:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = file.read(min(length, LONGEST_HEADER_BYTES))
            digest = hashlib.sha256(header).hexdigest()
        state[str(path.relative_to(folder))] = (info.st_size, info.st_mtime_ns, digest)
    return state


def differences(expected: dict, found: dict) -> list[str]:
    """Say in words how two states of a folder differ."""
    words = [f"`{name}` is missing" for name in expected.keys() - found.keys()]
    words += [f"`{name}` should not be there" for name in found.keys() - expected.keys()]
    words += [f"`{name}` differs" for name in expected.keys() & found.keys() if expected[name] != found[name]]
    return sorted(words)


@dataclass
class Round:
    """What happened in one round: when it was killed, how it went on, and what was wrong."""

    kill_seconds: list[float] = field(default_factory=list)
    partial_bytes: int = 0
    resume_seconds: float | None = None
    resume_written_bytes: int | None = None
    problems: list[str] = field(default_factory=list)


class Surgeon:
    """Runs compress on one model and recipe, into folders of a work folder of its own."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        command = [str(args.executable)] if args.executable else [sys.executable, "-m", "gemma_surgery"]
        self.prefix = [*command, "compress", str(args.model)]
        self.suffix = ["--recipe", args.recipe, "--no-measure", "--json", *args.option]
        self.work = work

    def command(self, target: Path, resume: bool) -> list[str]:
        return [*self.prefix, "-o", str(target), *self.suffix, *(["--resume"] if resume else [])]

    def finish(self, target: Path, resume: bool = False) -> tuple[float, dict]:
        """Run to the end; return seconds and the report.

        Raises:
            RuntimeError: the exit code is not 0 or the last line is not JSON.
        """
        start = time.perf_counter()
        done = subprocess.run(
            self.command(target, resume),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        if done.returncode != 0:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr.strip()[-500:]}")
        try:
            return seconds, json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, ValueError) as error:
            raise RuntimeError("the last line of standard output is no JSON object") from error

    def kill_after(self, target: Path, seconds: float, resume: bool) -> bool:
        """Start, wait, SIGKILL; return False if the process ended by itself before.

        Raises:
            RuntimeError: it ended by itself with an error.
        """
        process = subprocess.Popen(
            self.command(target, resume),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if code != 0:
            raise RuntimeError(f"exit code {code} before the kill at {seconds:.3f} s")
        return False

    def partial_bytes(self) -> int:
        """Return the allocated bytes of everything in the work folder."""
        return sum(path.lstat().st_blocks * 512 for path in self.work.rglob("*") if path.is_file())


def play(surgeon: Surgeon, duration: float, expected: dict[str, str], chance: random.Random) -> Round | None:
    """Play one round in an empty work folder; None if the process ended before its kill."""
    result = Round()
    target = surgeon.work / "output"
    try:
        for resume in (False, True):
            if resume and (target.exists() or chance.random() >= SECOND_KILL_PROBABILITY):
                break
            delay = chance.uniform(0, duration)
            if surgeon.kill_after(target, delay, resume):
                result.kill_seconds.append(delay)
                result.partial_bytes = surgeon.partial_bytes()
            elif not resume:
                return None
            if target.exists():
                problems = differences(expected, folder_hashes(target))
                result.problems += [f"half a target after a kill: {problem}" for problem in problems]
        if not target.exists():
            result.resume_seconds, report = surgeon.finish(target, resume=True)
            result.resume_written_bytes = report["written_bytes"]
        result.problems += differences(expected, folder_hashes(target))
    except RuntimeError as error:
        result.problems.append(str(error))
    left = sorted(path.name for path in surgeon.work.iterdir() if path != target)
    result.problems += [f"`{name}` is left beside the output" for name in left]
    return result


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def show(number: int, result: Round) -> None:
    """Print one line of the table."""
    kills = ", ".join(f"{seconds:.3f}" for seconds in result.kill_seconds)
    resumed = "complete" if result.resume_seconds is None else f"{result.resume_seconds:.3f}"
    written = "" if result.resume_written_bytes is None else f"{result.resume_written_bytes / 1e6:.1f}"
    verdict = "same bytes" if not result.problems else "; ".join(result.problems[:3])
    on_disk = f"{result.partial_bytes / 1e6:.1f}"
    print(f"{number:>4}  {kills:<16} {on_disk:>10}  {resumed:>9}  {written:>10}  {verdict}", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of a checkpoint; it is only read")
    parser.add_argument("--recipe", default="mobile")
    parser.add_argument("--runs", type=int, default=20, help="rounds with a kill (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default 0)")
    parser.add_argument("--option", action="append", default=[], help="passed on, e.g. --option=--threads=1")
    parser.add_argument("--work", type=Path, help="folder for the outputs (default: beside MODEL)")
    parser.add_argument("--hash-source", action="store_true", help="hash all of the source, not only headers")
    parser.add_argument("--executable", type=Path, help="another gemma-surgery than this environment's")
    args = parser.parse_args()
    args.model = args.model.resolve()
    return args


def main() -> None:
    args = parse()
    chance = random.Random(args.seed)
    before = source_state(args.model, args.hash_source)
    failed = counted = attempts = 0
    with tempfile.TemporaryDirectory(dir=args.work or args.model.parent, prefix=".kill-resume-") as folder:
        surgeon = Surgeon(args, Path(folder))
        try:
            duration, _ = surgeon.finish(surgeon.work / "output")
        except RuntimeError as error:
            sys.exit(f"the undisturbed run failed: {error}")
        expected = folder_hashes(surgeon.work / "output")
        print(f"reference: {len(expected)} files in {duration:.3f} s, seed {args.seed}")
        print("   #  killed at, s      on disk MB   resume s  written MB  verdict")
        while counted < args.runs and attempts < 10 * args.runs:
            attempts += 1
            empty(surgeon.work)
            result = play(surgeon, duration, expected, chance)
            if result is None:
                continue
            counted += 1
            failed += bool(result.problems)
            show(counted, result)
    source = differences(before, source_state(args.model, args.hash_source))
    print("source: " + ("untouched" if not source else "; ".join(source)))
    if counted < args.runs:
        print(f"only {counted} of {args.runs} rounds could be killed in time")
    ok = not failed and not source and counted == args.runs
    summary = {"ok": ok, "rounds": counted, "failed": failed, "source_untouched": not source}
    print(json.dumps({**summary, "reference_seconds": duration, "seed": args.seed}))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
