"""eval_gpu of the primitives, compiled against MLX and a Metal device that runs the kernels right here."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
from harness import HERE, KernelName, Launch, run_clang
from kernels import KERNELS, SOURCES, Kernels, source_text

MLX = Path(mx.__file__).parent
DTYPES = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.uint16): 2,
    np.dtype(np.uint32): 3,
    np.dtype(np.int32): 4,
}
# Small enough that a few rows of h are several tiles.
LIMITS = ["-DGEMMA_SURGERY_MOST_PRODUCTS=(1<<18)", "-DGEMMA_SURGERY_MOST_TEMPORARY_BYTES=(1<<14)"]


class _Dispatch(ctypes.Structure):
    _fields_ = [
        ("library", ctypes.c_char_p),
        ("source", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("constant_count", ctypes.c_int),
        ("constant_indices", ctypes.c_int * 16),
        ("constants", ctypes.c_int * 16),
        ("buffer_count", ctypes.c_int),
        ("data", ctypes.c_void_p * 16),
        ("sizes", ctypes.c_size_t * 16),
        ("writable", ctypes.c_int * 16),
        ("grid", ctypes.c_uint * 3),
        ("group", ctypes.c_uint * 3),
    ]


class _Array(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("elements", ctypes.c_int64),
        ("dtype", ctypes.c_int),
        ("axes", ctypes.c_int),
        ("shape", ctypes.c_int * 8),
        ("strides", ctypes.c_int64 * 8),
    ]


def find_cmake() -> str | None:
    """CMake comes with the environment, which need not be activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("cmake", path=path)


def embed_sources(output: Path) -> None:
    """Runs the build step that puts the kernel sources into a C++ file."""
    cmake = find_cmake()
    assert cmake is not None
    command = [cmake, f"-DFOLDER={SOURCES}", f"-DOUTPUT={output}"]
    subprocess.run([*command, "-P", str(SOURCES / "embed.cmake")], check=True)


def _described(array: np.ndarray) -> _Array:
    """An array and its strides; its memory is the whole of the array that it is a view of."""
    whole = array if array.base is None or not isinstance(array.base, np.ndarray) else array.base
    assert whole.ctypes.data == array.ctypes.data
    described = _Array(array.ctypes.data, whole.size, DTYPES[array.dtype], array.ndim)
    for axis in range(array.ndim):
        described.shape[axis] = array.shape[axis]
        described.strides[axis] = array.strides[axis] // array.itemsize
    return described


class HostSide:
    """Calls eval_gpu; every dispatch runs under the checks of the harness."""

    def __init__(self, folder: Path, kernels: Kernels) -> None:
        embed_sources(folder / "metal_files.cpp")
        includes = [f"-I{HERE / 'host'}", f"-I{folder}", f"-I{MLX / 'include'}", f"-I{SOURCES.parent}"]
        link = [f"-L{MLX / 'lib'}", "-lmlx", f"-Wl,-rpath,{MLX / 'lib'}"]
        library = folder / "evaluate.so"
        flags = ["-std=c++20", "-O0", "-fPIC", "-shared", "-w", *LIMITS]
        run_clang(*flags, *includes, str(HERE / "host/evaluate.cpp"), *link, "-o", str(library))
        self.kernels = kernels
        self.dispatches: list[str] = []
        self._errors: list[Exception] = []
        self._library = ctypes.CDLL(str(library))
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Dispatch))(self._on_dispatch)
        ctypes.c_void_p.in_dll(self._library, "on_dispatch").value = ctypes.cast(
            self._callback, ctypes.c_void_p
        ).value

    def source(self, file: str, types: tuple[str, str, str]) -> str:
        """The text that a build with Metal compiles at run time."""
        function = self._library.source_of
        function.restype = ctypes.c_char_p
        return function(file.encode(), *[kind.encode() for kind in types]).decode()

    def _on_dispatch(self, pointer: ctypes._Pointer[_Dispatch]) -> int:
        try:
            self._run(pointer.contents)
        except Exception as error:
            self._errors.append(error)
            return 1
        return 0

    def _run(self, dispatch: _Dispatch) -> None:
        name = dispatch.library.decode().removeprefix("gemma_surgery_")
        file = next(file for file in KERNELS if name.startswith(file + "_"))
        x, s, o = name.removeprefix(file + "_").split("_")
        assert dispatch.source.decode() == source_text(file, (x, s, o))
        buffers = [
            np.ctypeslib.as_array((ctypes.c_uint8 * dispatch.sizes[i]).from_address(dispatch.data[i]))
            if dispatch.data[i]
            else np.zeros(0, np.uint8)
            for i in range(dispatch.buffer_count)
        ]
        kernel = dispatch.kernel.decode()
        self.dispatches.append(kernel)
        self.kernels.library(file, (x, s, o)).run(
            Launch(
                KernelName(kernel),
                buffers,
                {i for i in range(dispatch.buffer_count) if dispatch.writable[i]},
                tuple(dispatch.grid),
                tuple(dispatch.group),
                {dispatch.constant_indices[i]: dispatch.constants[i] for i in range(dispatch.constant_count)},
                seed=len(self.dispatches),
            )
        )

    def _call(self, function: Callable[..., bytes], *arguments: object) -> None:
        self.dispatches.clear()
        function.restype = ctypes.c_char_p  # type: ignore[attr-defined]
        message = function(*arguments).decode()
        if self._errors:
            raise self._errors.pop()
        if message:
            raise ValueError(message)

    def run(
        self, op: str, inputs: list[np.ndarray], outputs: list[np.ndarray], *parameters: int | float
    ) -> None:
        """One evaluation of `op` with the parameters of its primitive, in place of `outputs`."""
        ins = (_Array * len(inputs))(*[_described(array) for array in inputs])
        outs = (_Array * len(outputs))(*[_described(array) for array in outputs])
        extra = [ctypes.c_float(value) if isinstance(value, float) else value for value in parameters]
        self._call(getattr(self._library, f"run_{op}"), ins, len(inputs), outs, *extra)

    def run_requantize(
        self,
        inputs: list[np.ndarray],
        outputs: list[np.ndarray],
        source: tuple[int, int, int],
        target: tuple[int, int, int],
        takes: tuple[bool, bool],
        refine: bool = False,
    ) -> None:
        """Encodings as (dtype, bits, group); whether columns and rows are among the inputs."""
        ins = (_Array * len(inputs))(*[_described(array) for array in inputs])
        outs = (_Array * len(outputs))(*[_described(array) for array in outputs])
        encodings = [(ctypes.c_int * 3)(*encoding) for encoding in (source, target)]
        function = self._library.run_requantize
        self._call(function, ins, len(inputs), outs, len(outputs), *encodings, *map(int, takes), int(refine))
