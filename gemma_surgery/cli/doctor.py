"""`doctor`: is the native module healthy here?"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
import typer

from gemma_surgery import __version__
from gemma_surgery.cli import options
from gemma_surgery.cli.console import out, print_json
from gemma_surgery.errors import SurgeryError


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    ok: bool
    detail: str


def command(json: options.Json = False) -> None:
    """Show versions and instruction sets, and run the kernels against NumPy; exit code 1 if one is wrong."""
    checks = [_run("python", _python), _run("native module", _native)]
    if checks[-1].ok:
        from gemma_surgery._native import ext

        checks += [_run(f"kernels, {isa}", partial(_kernels, isa)) for isa in ext.available_isas()]
    checks.append(_run("metal", _metal))
    if json:
        print_json({"ok": all(check.ok for check in checks), "checks": [vars(check) for check in checks]})
    else:
        for check in checks:
            out().print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except SurgeryError as error:
        return Check(name, False, str(error))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {error}")


def _python() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlx", "numpy", "tokenizers"))
    where = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return f"{where}; gemma-surgery {__version__}, {packages}"


def _native() -> str:
    from gemma_surgery._native import ext

    built = ", ".join(f"{key} {value}" for key, value in sorted(ext.build_info().items()))
    return f"built with {built}; runs {ext.default_isa()} out of {', '.join(ext.available_isas())}"


def _kernels(isa: str) -> str:
    """Every decoded value must be the point of its group's grid that is nearest to the input."""
    from gemma_surgery._native import ext

    rows, columns = 8, 128
    values = np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float32)
    picked = np.r_[np.arange(0, columns, 2), np.full(64, -1)].astype(np.int32)
    expected = np.where(picked >= 0, values[:, np.maximum(picked, 0)], 0)
    dense = ext.Encoding("F32")
    for bits in (2, 3, 4, 5, 6, 8):
        target = ext.Encoding("F32", bits, 64)
        codes, scales, biases = (np.empty(rows * size, np.uint8) for size in target.row_bytes(len(picked)))
        ext.requantize(
            values, None, None, dense, rows, columns, picked, target, codes, scales, biases, isa=isa
        )
        decoded = np.empty((rows, len(picked)), np.float32)
        ext.requantize(
            codes, scales, biases, target, rows, len(picked), None, dense, decoded, None, None, isa=isa
        )
        scale, bias = (part.view(np.float32).reshape(rows, -1, 1, 1) for part in (scales, biases))
        grid = scale * np.arange(2**bits, dtype=np.float32) + bias
        nearest = np.abs(grid - expected.reshape(rows, -1, 64, 1)).min(axis=-1).reshape(expected.shape)
        if not (np.abs(decoded - expected) <= nearest + 1e-6).all():
            raise SurgeryError(
                "doctor", f"the {isa} kernel does not round to the nearest code at {bits} bits"
            )
        if decoded[:, picked < 0].any():
            raise SurgeryError(
                "doctor", f"the {isa} kernel does not keep padding columns zero at {bits} bits"
            )
    return "requantize agrees with NumPy at 2, 3, 4, 5, 6 and 8 bits, padding stays zero"


def _metal() -> str:
    import mlx.core as mx

    if not mx.metal.is_available():
        return "not available here: the surgery runs on the CPU"
    return "available; the surgery runs on the CPU, no Metal kernel is part of this version"
