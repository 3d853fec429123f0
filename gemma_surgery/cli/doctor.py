"""`doctor`: is the native module healthy here, and is every op right on every backend?"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

import typer

from gemma_surgery import __version__
from gemma_surgery.cli import options
from gemma_surgery.cli.console import out, print_json, print_table
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.ops.self_test import Finding


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    name: str
    ok: bool
    detail: str


def command(json: options.Json = False) -> None:
    """Show versions and backends, and run every op on each against float64; exit code 1 if one is wrong."""
    checks = [_run("python", _python), _run("native module", _native)]
    findings: list[Finding] = []
    if checks[-1].ok:
        from gemma_surgery.ops import self_test

        backends = self_test.available_backends()
        findings = self_test.run(backends)
        checks += [_kernels(backend.name, findings) for backend in backends]
    checks.append(_run("metal", _metal))
    verdict = _verdict(checks, findings)
    is_well = all(check.ok for check in checks)
    if json:
        print_json(
            {
                "ok": is_well,
                "verdict": verdict,
                "checks": [vars(check) for check in checks],
                # JSON has no infinity: the error of what could not be compared is null.
                "ops": [
                    asdict(one) | {"error": one.error if one.error < float("inf") else None}
                    for one in findings
                ],
            }
        )
    else:
        for check in checks:
            # Messages start with their place in brackets, which is no markup.
            out().print(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}", markup=False)
        if findings:
            _show(findings)
        out().print(verdict)
    if not is_well:
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


def _kernels(backend: str, findings: list[Finding]) -> Check:
    """What the self-test found on one backend."""
    mine = [one for one in findings if one.backend == backend]
    wrong = [one for one in mine if not one.ok]
    detail = "; ".join(one.detail for one in wrong) or f"{len(mine)} ops agree with float64"
    return Check(f"kernels, {backend}", not wrong, detail)


def _show(findings: list[Finding]) -> None:
    """Ops by backends, with the largest error of each."""
    backends = list(dict.fromkeys(one.backend for one in findings))
    rows = []
    for op in dict.fromkeys(one.op for one in findings):
        cells = {one.backend: one for one in findings if one.op == op}
        rows.append(
            [op, *(f"{'ok' if cells[name].ok else 'WRONG'} {cells[name].error:.0e}" for name in backends)]
        )
    print_table(
        "largest error, as a part of the largest value",
        [("op", "left"), *((name, "right") for name in backends)],
        rows,
    )


def _verdict(checks: list[Check], findings: list[Finding]) -> str:
    wrong = [one for one in findings if not one.ok]
    if wrong:
        names = ", ".join(dict.fromkeys(f"`{one.op}` on {one.backend}" for one in wrong))
        return f"verdict: wrong results from {names}: do not use them, and please report this output"
    if not all(check.ok for check in checks):
        return "verdict: not healthy, see the line that says FAIL"
    backends = dict.fromkeys(one.backend for one in findings)
    return f"verdict: healthy, all ops are right on {', '.join(backends)}"


def _metal() -> str:
    import mlx.core as mx

    if not mx.metal.is_available():
        return "not available here: the ops and the surgery run on the CPU"
    return "available: the ops run there on a GPU stream; the surgery runs on the CPU"
