"""Metal kernels on the processor: compiles MSL against the shim headers in `msl/` and runs it under checks.

A kernel runs one threadgroup at a time, its threads as fibers in random order. Errors are accesses outside
the buffers, races (no barrier between), reads of unwritten threadgroup memory, and unequal barriers.
"""

from __future__ import annotations

import ctypes
import functools
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SHIM = HERE / "msl"
# The thread sanitizer's hooks are how accesses are seen; vectors wider than 16 bytes would escape them.
INSTRUMENT = ["-Xclang", "-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0"]
FLAGS = [
    *["-std=c++17", "-O1", "-fPIC", "-fno-vectorize", "-fno-slp-vectorize", "-ffp-contract=off"],
    *["-fno-strict-aliasing", "-fno-exceptions", "-w", f"-I{SHIM}"],
]
PROBE = "__bf16 f(__bf16 a, _Float16 b) { return (__bf16)((float)a * (float)b); }"

POSITIONS = {
    "thread_position_in_grid": "p.in_grid",
    "threads_per_grid": "threads_per_grid",
    "threadgroup_position_in_grid": "p.group",
    "threadgroups_per_grid": "p.grid_groups",
    "thread_position_in_threadgroup": "p.in_group",
    "threads_per_threadgroup": "p.group_size",
}
INDICES = {
    "thread_index_in_threadgroup": "p.thread",
    "simdgroup_index_in_threadgroup": "p.thread / 32",
    "thread_index_in_simdgroup": "p.thread % 32",
}

# What ran in this session, for the summary line.
counts: Counter[str] = Counter()
kernels_run: set[str] = set()
instantiations: set[tuple[str, str, tuple[tuple[int, float], ...]]] = set()


@functools.cache
def find_clang() -> tuple[str | None, str]:
    """The newest usable clang++, or None and the reason."""
    if sys.platform != "linux":
        return None, "runs on Linux; elsewhere the kernels have a GPU to run on"
    tried = []
    for name in ["clang++-19", "clang++-18", "clang++-17", "clang++"]:
        path = shutil.which(name)
        if path is None:
            continue
        done = subprocess.run(
            [path, "-x", "c++", "-fsyntax-only", "-"],
            input=PROBE,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0:
            return path, ""
        tried.append(name)
    if tried:
        return (
            None,
            f"needs a clang++ that computes in __bf16 and _Float16 (17 or newer), found {', '.join(tried)}",
        )
    return None, "needs clang++ (17 or newer), found none"


def run_clang(*arguments: str) -> None:
    clang, reason = find_clang()
    assert clang is not None, reason
    done = subprocess.run([clang, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"clang++ {' '.join(arguments)}\n{done.stderr[:6000]}")


@dataclass(frozen=True)
class KernelName:
    """A kernel and its template arguments; those of a plain kernel are empty."""

    name: str
    arguments: str = ""

    def call(self) -> str:
        return f"{self.name}<{self.arguments}>" if self.arguments else self.name


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_size_t), ("writable", ctypes.c_int)]


class KernelError(Exception):
    """What the checks found."""


@dataclass
class Launch:
    """One dispatch: buffers in the order of their indices, the written ones named; sizes in threadgroups."""

    kernel: KernelName
    buffers: list[np.ndarray]
    outputs: set[int]
    grid: tuple[int, int, int]
    group: tuple[int, int, int]
    constants: dict[int, float] = field(default_factory=dict)
    seed: int = 1


def _with_threadgroup_memory(source: str) -> str:
    declaration = re.compile(r"^(\s*)threadgroup\s+([\w:<>]+)\s+(\w+)((?:\[[^\]]+\])+)\s*;", re.MULTILINE)
    return declaration.sub(
        r"\1using \3_t = \2\4; static const char \3_key = 0; "
        r"threadgroup \3_t& \3 = *(threadgroup \3_t*)msl_threadgroup_memory(&\3_key, sizeof(\3_t));",
        source,
    )


def _parameters(source: str, kernel: str) -> list[str]:
    start = re.search(rf"\[\[kernel[^\]]*\]\]\s+void\s+{kernel}\(", source)
    assert start is not None, f"no kernel `{kernel}` in the source"
    depth, at, parts, begin = 1, start.end(), [], start.end()
    while depth:
        character = source[at]
        depth += (character in "([<") - (character in ")]>")
        if (character == "," and depth == 1) or depth == 0:
            parts.append(" ".join(source[begin:at].split()))
            begin = at + 1
        at += 1
    return parts


def _argument(parameter: str) -> str:
    match = re.fullmatch(r"(.*?)\[\[(\w+)(?:\((\d+)\))?\]\]", parameter)
    assert match is not None, f"no attribute on `{parameter}`"
    declaration, attribute, number = match.groups()
    if attribute == "buffer":
        return f"Pointer{{b[{number}].data}}" if "*" in declaration else f"Reference{{b[{number}].data}}"
    if attribute in INDICES:
        return INDICES[attribute]
    kind = declaration.split()[0]
    size = {"uint": 1, "uint2": 2, "uint3": 3}[kind]
    values = ", ".join(f"{POSITIONS[attribute]}[{axis}]" for axis in range(size))
    return values if size == 1 else f"({kind}){{{values}}}"


def _glue(source: str, kernels: list[KernelName]) -> str:
    lines = [
        *[f"#undef {word}" for word in ["thread", "device", "constant", "threadgroup"]],
        '#include "scheduler.h"',
        "struct Pointer { char* data; template <typename T> operator T*() const { return (T*)data; } };",
        "struct Reference { char* data; template <typename T> operator T&() const { return *(T*)data; } };",
    ]
    for index, kernel in enumerate(kernels):
        arguments = ", ".join(_argument(parameter) for parameter in _parameters(source, kernel.name))
        lines += [
            '__attribute__((no_sanitize("thread")))',
            f"static void body_{index}(const msl::Position& p, const msl::Buffer* b) {{",
            "  const uint32_t threads_per_grid[3] = {p.grid_groups[0] * p.group_size[0],"
            " p.grid_groups[1] * p.group_size[1], p.grid_groups[2] * p.group_size[2]};",
            f"  {kernel.call()}({arguments});",
            "}",
        ]
    cases = "".join(f"case {index}: launch.body = body_{index}; break;" for index in range(len(kernels)))
    constants = re.findall(r"constant\s+\w+\s+(\w+)\s+\[\[function_constant\((\d+)\)\]\];", source)
    settings = "".join(
        f"case {number}: {name} = (decltype({name}))value; break;" for name, number in constants
    )
    return "\n".join(
        [
            *lines,
            'extern "C" __attribute__((no_sanitize("thread")))',
            "const char* msl_launch(int kernel, const msl::Buffer* buffers, int count,",
            "                       const uint32_t* grid, const uint32_t* group, uint64_t seed) {",
            "  msl::Launch launch{nullptr, buffers, count, {grid[0], grid[1], grid[2]},",
            "                     {group[0], group[1], group[2]}};",
            f"  switch (kernel) {{ {cases} }}",
            "  msl::begin_launch(launch);",
            "  msl::run(launch, seed);",
            "  return msl::first_report();",
            "}",
            'extern "C" __attribute__((no_sanitize("thread")))',
            "void msl_set_constant(int number, double value) {",
            f"  switch (number) {{ {settings} }}",
            "}",
            "",
        ]
    )


class Library:
    """Kernels compiled from one source text."""

    def __init__(
        self, folder: Path, name: str, source: str, kernels: list[KernelName], flags: tuple[str, ...] = ()
    ) -> None:
        self.kernels = kernels
        self.name = name
        counts["libraries"] += 1
        runtime = []
        for part in ["scheduler", "memory", "hooks"]:
            compiled = folder / f"{part}.o"
            if not compiled.exists():
                flags = [flag.replace("c++17", "c++20") for flag in FLAGS]
                run_clang(*flags, "-O2", "-c", str(SHIM / f"{part}.cpp"), "-o", str(compiled))
            runtime.append(str(compiled))
        text = folder / f"{name}.cpp"
        text.write_text(_with_threadgroup_memory(source) + _glue(source, kernels))
        library = folder / f"{name}.so"
        run_clang(*FLAGS, *flags, *INSTRUMENT, "-shared", str(text), *runtime, "-o", str(library))
        self._library = ctypes.CDLL(str(library))
        self._library.msl_launch.restype = ctypes.c_char_p
        self._library.msl_set_constant.argtypes = [ctypes.c_int, ctypes.c_double]

    def run(self, launch: Launch) -> None:
        """Runs one dispatch in place; raises KernelError with what the checks found."""
        for number, value in launch.constants.items():
            self._library.msl_set_constant(number, float(value))
        assert all(array.flags.c_contiguous for array in launch.buffers)
        buffers = (_Buffer * len(launch.buffers))(
            *[
                _Buffer(array.ctypes.data, array.nbytes, index in launch.outputs)
                for index, array in enumerate(launch.buffers)
            ]
        )
        error = self._library.msl_launch(
            self.kernels.index(launch.kernel),
            buffers,
            len(launch.buffers),
            (ctypes.c_uint32 * 3)(*launch.grid),
            (ctypes.c_uint32 * 3)(*launch.group),
            ctypes.c_uint64(launch.seed),
        ).decode()
        counts["dispatches"] += 1
        kernels_run.add(launch.kernel.name)
        instantiations.add((self.name, launch.kernel.call(), tuple(sorted(launch.constants.items()))))
        if error:
            raise KernelError(error)
