"""The GPU side against Apple's interfaces, on any system.

eval_gpu is type-checked with the headers of MLX's macOS wheel, every function that it calls is looked up
among those that its library exports, and the kernels are checked with address spaces that cannot be mixed.
"""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from harness import HERE, SHIM, find_clang
from host_side import embed_sources, find_cmake
from kernels import KERNELS, SOURCES, source_text

ROOT = SOURCES.parents[1]
PRIMITIVES = SOURCES.parent / "primitives"
pytestmark = pytest.mark.skipif(not PRIMITIVES.exists(), reason="needs a checkout")


def check_with_clang(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    clang, reason = find_clang()
    if clang is None:
        pytest.skip(reason)
    return subprocess.run([clang, *arguments], input=text, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def macos_mlx() -> Path:
    """The macOS build of the installed MLX, unpacked; downloaded once."""
    name = f"mlx-metal=={version('mlx')}"
    folder = ROOT / "build" / "macos-mlx" / version("mlx")
    if folder.exists():
        return folder / "mlx"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        part = Path(unfinished) / "unpacked"
        options = [
            "--no-deps",
            "--only-binary=:all:",
            "--platform",
            "macosx_14_0_arm64",
            "--python-version",
            "3.11",
        ]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options, "--dest", unfinished, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"`pip download {name}` for macOS failed: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(next(Path(unfinished).glob("*.whl"))) as archive:
            for member in archive.namelist():
                if member.startswith("mlx/include/") or member.endswith("libmlx.dylib"):
                    archive.extract(member, part)
        part.rename(folder)
    return folder / "mlx"


def includes(mlx: Path) -> list[str]:
    system = [HERE / "apple", mlx / "include", mlx / "include/metal_cpp"]
    return [f"-I{SOURCES.parent}", *[f"-isystem{folder}" for folder in system]]


HOST_FLAGS = ["-std=c++20", "-fblocks", "-D_METAL_", "-Wall", "-Wextra", "-Werror"]
HOST_FILES = sorted(path.name for path in PRIMITIVES.glob("metal_*.cpp"))


@pytest.fixture(scope="module")
def compiled(macos_mlx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of eval_gpu in one object file, with the headers for macOS and code for this processor."""
    folder = tmp_path_factory.mktemp("eval_gpu")
    whole = folder / "all.cpp"
    whole.write_text("".join(f'#include "primitives/{file}"\n' for file in HOST_FILES))
    flags = [*HOST_FLAGS, "-O1", *includes(macos_mlx), "-c", str(whole), "-o", str(folder / "all.o")]
    done = check_with_clang(*flags)
    assert done.returncode == 0, done.stderr
    return folder / "all.o"


def test_every_eval_gpu_fits_the_macos_headers(compiled: Path) -> None:
    assert len(HOST_FILES) >= 5
    names = subprocess.run(["nm", "-C", str(compiled)], capture_output=True, text=True, check=True).stdout
    for primitive in [
        "GatherEmbed",
        "QuantizedLinear",
        "TiedLogits",
        "TiedTopk",
        "TiedLogprob",
        "Requantize",
    ]:
        assert f"T gemma_surgery::ops::{primitive}::eval_gpu(" in names


def test_a_misspelt_method_does_not_pass(macos_mlx: Path) -> None:
    text = (PRIMITIVES / "metal_call.cpp").read_text()
    wrong = text.replace("encoder_.dispatch_threadgroups(", "encoder_.dispatch_threadgroup(")
    assert wrong != text
    done = check_with_clang(*HOST_FLAGS, *includes(macos_mlx), "-fsyntax-only", "-x", "c++", "-", text=wrong)
    assert done.returncode != 0
    assert "no member named 'dispatch_threadgroup'" in done.stderr


def exported_symbols(dylib: Path) -> set[str]:
    """Names of the external definitions of a 64-bit Mach-O library."""
    data = dylib.read_bytes()
    magic, _, _, _, commands, _, _, _ = struct.unpack_from("<8I", data)
    assert magic == 0xFEEDFACF
    at = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == 2:
            break
        at += size
    symbols_at, count, strings_at, _ = struct.unpack_from("<4I", data, at + 8)
    names = set()
    for index in range(count):
        name_at, kind, _, _, _ = struct.unpack_from("<IBBHQ", data, symbols_at + 16 * index)
        if kind & 0x11 == 0x01 and kind & 0x0E:
            end = data.index(b"\0", strings_at + name_at)
            names.add(data[strings_at + name_at : end].decode())
    return names


def nested_name(symbol: str) -> str | None:
    """The mangled name up to its parameters, in which the two C++ libraries differ."""
    start = re.match(r"_*ZNK?", symbol)
    if start is None:
        return None
    at, parts = start.end(), []
    while length := re.match(r"\d+", symbol[at:]):
        begin = at + length.end()
        at = begin + int(length[0])
        parts.append(symbol[begin:at])
    constructor = symbol[at] if symbol[at] in "CD" else ""
    return "::".join([*parts, *constructor])


def test_every_function_that_eval_gpu_calls_is_exported(compiled: Path, macos_mlx: Path) -> None:
    exported = {nested_name(name) for name in exported_symbols(macos_mlx / "lib/libmlx.dylib")}
    assert len(exported) > 500
    # Functions that the header declares and the library keeps to itself would only fail on a Mac.
    assert "mlx::core::contiguous_copy_gpu" not in exported
    listed = subprocess.run(["nm", "-u", str(compiled)], capture_output=True, text=True, check=True).stdout
    names = {nested_name(line.split()[-1]) for line in listed.splitlines() if line.strip()}
    needed = {name for name in names if name and name.split("::")[0] in ("mlx", "MTL", "NS")}
    assert "mlx::core::metal::CommandEncoder::set_input_array" in needed
    assert needed <= exported


def test_the_embedded_sources_compile(tmp_path: Path) -> None:
    if find_cmake() is None:
        pytest.skip("needs cmake")
    embed_sources(tmp_path / "files.cpp")
    done = check_with_clang("-std=c++20", f"-I{SOURCES.parent}", "-fsyntax-only", str(tmp_path / "files.cpp"))
    assert done.returncode == 0, done.stderr


KERNEL_FLAGS = ["-std=c++17", "-fsyntax-only", "-DMSL_ADDRESS_SPACES", "-x", "c++", f"-isystem{SHIM}"]
# Metal is C++14 with little more, up to version 3.
KERNEL_FLAGS += ["-Werror=pre-c++17-compat"]
KERNEL_FLAGS += ["-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-unknown-pragmas", "-"]
TYPES = [("float",) * 3, ("bfloat",) * 3, ("half", "bfloat", "float")]


def as_checked(source: str) -> str:
    """Local arrays of threadgroup memory as declarations that a host compiler takes."""
    return re.sub(r"^(\s+)(threadgroup [\w:<>]+ \w+\[.*\];)$", r"\1extern \2", source, flags=re.MULTILINE)


@pytest.mark.parametrize("file", KERNELS)
def test_kernels_keep_address_spaces_apart(file: str) -> None:
    for types in TYPES:
        done = check_with_clang(*KERNEL_FLAGS, text=as_checked(source_text(file, types)))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("tied_topk", "threadgroup ulong* keys, int lists", "device ulong* keys, int lists"),
        ("tied_logits", "    device O* out,", "    thread O* out,"),
    ],
)
def test_a_pointer_to_the_wrong_address_space_does_not_pass(file: str, old: str, new: str) -> None:
    text = as_checked(source_text(file, ("float",) * 3))
    assert old in text
    assert check_with_clang(*KERNEL_FLAGS, text=text.replace(old, new, 1)).returncode != 0


@pytest.mark.parametrize("file", KERNELS)
def test_every_pointer_names_its_address_space(file: str) -> None:
    # Metal takes no pointer or reference without one; a host compiler would.
    text = re.sub(r"//.*|#.*", "", source_text(file, ("float",) * 3))
    spaces = r"(?:device|constant|threadgroup|thread)\b"
    types = r"(?:float|float2|int|uint|ulong|long|uchar|ushort|bool|half|[XSO]|[A-Z]\w+)"
    for match in re.finditer(rf"([\w ]*?)\b{types}\s*[*&]\s*\w+\s*[,)=;\[]", text):
        assert re.search(spaces, match[0]), match[0]
