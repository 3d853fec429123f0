"""How much memory this machine has to spare, and how much of it its caches hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# Where no system call tells what is free, half of what is built in counts as free.
_FREE_SHARE = 0.5


def available_bytes() -> int:
    """Return the memory that can be taken without pushing others out, a container's limit included."""
    if _MEMINFO.exists():
        match = re.search(r"^MemAvailable:\s*(\d+) kB$", _MEMINFO.read_text(), re.MULTILINE)
        if match:
            return min(int(match[1]) << 10, _cgroup_room())
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _FREE_SHARE)


def last_cache_bytes() -> int:
    """Return the size of the largest cache of a core, 0 where the system does not tell."""
    if sys.platform == "darwin":
        sizes = [_sysctl(name) for name in ("hw.l3cachesize", "hw.perflevel0.l2cachesize", "hw.l2cachesize")]
        return max(sizes)
    return max((_size(path.read_text()) for path in _CACHES.glob("index*/size")), default=0)


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_room() -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return sys.maxsize
    return max(0, int(limit) - used) if limit.isdecimal() else sys.maxsize


def _sysctl(name: str) -> int:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    return int(text) if text.isdecimal() else 0


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip())
    return int(match[1]) * _UNITS[match[2]] if match else 0
