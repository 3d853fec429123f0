"""What the machine is, and the state of its memory and page cache: shared by the benches."""

from __future__ import annotations

import datetime
import errno
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

CHUNK = 8 << 20
PRETOUCH = """
import mmap, sys
size = int(sys.argv[1])
for _ in range(2):
    memory = mmap.mmap(-1, size)
    memory[::4096] = bytes(len(range(0, size, 4096)))
    memory.close()
"""


def describe_machine(folder: Path) -> dict[str, str | int]:
    """Return date, commit, system, processor, cores, memory, and the file system that holds `folder`."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", str(here), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or "none",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory_bytes / 2**30),
        "file_system": file_system(folder),
        "python": platform.python_version(),
    }


def processor() -> str:
    """Return the marketing name of the processor, or the architecture where the system tells no name."""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def file_system(folder: Path) -> str:
    """Return the type of the file system of `folder`, ``unknown`` where no mounts are listed."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return "unknown"
    best, kind = -1, "unknown"
    for line in mounts.read_text().splitlines():
        mount, _, rest = line.partition(" - ")
        point = Path(mount.split()[4])
        if folder.resolve().is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), rest.split()[0]
    return kind


def pretouch(gib: float) -> None:
    """Touch that much memory twice and release it, so that the next process finds pages that are backed."""
    # In a process of its own: a child's peak memory starts at its parent's, which must stay small.
    subprocess.run([sys.executable, "-c", PRETOUCH, str(int(gib * 2**30))], check=True)


def read_once(path: Path) -> None:
    """Read a file, which brings it into the page cache."""
    buffer = bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def evict(path: Path) -> None:
    """Ask the system to forget the cached pages of a file, where it can be asked."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_fraction(path: Path, samples: int = 512) -> float | None:
    """Return the share of a file that is in the page cache, from evenly spaced samples; None if unknown."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    size = path.stat().st_size
    hits = 0
    with path.open("rb", buffering=0) as file:
        for index in range(samples):
            try:
                hits += os.preadv(file.fileno(), [bytearray(1)], index * size // samples, os.RWF_NOWAIT) == 1
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    return None
                if error.errno != errno.EAGAIN:
                    raise
    return hits / samples


def flush_files(folder: Path) -> None:
    """Flush every file of a folder, and the folder itself, to the disk."""
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
