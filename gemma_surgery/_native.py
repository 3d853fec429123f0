"""The native module, imported once and checked: use ``from gemma_surgery._native import ext``."""

from __future__ import annotations

from importlib.metadata import version

import mlx.core as mx  # first: it loads the libmlx and the type registry that `_ext` shares

from gemma_surgery.errors import SurgeryError

__all__ = ["ext"]

_REPAIR = (
    "rebuild it against the installed mlx: "
    "`pip install --force-reinstall --no-deps --no-binary gemma-surgery gemma-surgery`, "
    "or `pip install --no-deps -e .` in a checkout"
)


def _minor(version: str) -> tuple[str, ...]:
    """Major and minor of a version: libmlx keeps its C++ ABI only within one minor."""
    return tuple(version.split(".")[:2])


def check_pairing(installed_mlx: str, built: dict[str, str], probe_error: Exception | None) -> None:
    """Raise when the native module cannot share arrays with the installed mlx.

    Args:
        installed_mlx: version of the imported mlx, e.g. ``0.32.4``.
        built: versions the module was compiled with: ``mlx``, ``nanobind``, ``compiler``.
        probe_error: what a call with an array raised, ``None`` if it worked.

    Raises:
        SurgeryError: naming both versions and the command that repairs the pairing.
    """
    if _minor(installed_mlx) == _minor(built["mlx"]) and probe_error is None:
        return
    raise SurgeryError(
        "native",
        f"need mlx {'.'.join(_minor(built['mlx']))}, which the native module was built for with "
        f"nanobind {built['nanobind']}, got mlx {installed_mlx} "
        + ("of another minor version" if probe_error is None else "whose arrays it cannot read"),
        _REPAIR,
    )


_installed_mlx = version("mlx")
try:
    from gemma_surgery import _ext as ext
except ImportError as error:
    # A missing file and a libmlx of another ABI both end here; the cause tells which.
    raise SurgeryError(
        "native",
        f"need the native module `gemma_surgery._ext`, got `{error}` with mlx {_installed_mlx}",
        _REPAIR,
    ) from error

_probe_error: TypeError | None = None
try:
    ext.probe_array(mx.zeros(1))
except TypeError as error:
    _probe_error = error
check_pairing(_installed_mlx, ext.build_info(), _probe_error)
