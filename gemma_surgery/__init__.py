"""Cut Gemma checkpoints down for small devices in one streamed pass, and prove what it cost.

`load`, `generate` and `stream_generate` run a checkpoint; they import MLX when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemma_surgery.generation.loading import load as load
    from gemma_surgery.generation.stream import Generated as Generated
    from gemma_surgery.generation.stream import generate as generate
    from gemma_surgery.generation.stream import stream_generate as stream_generate

__version__ = "0.1.0"

_HOMES = {
    "Generated": "gemma_surgery.generation.stream",
    "generate": "gemma_surgery.generation.stream",
    "load": "gemma_surgery.generation.loading",
    "stream_generate": "gemma_surgery.generation.stream",
}

__all__ = ["Generated", "__version__", "generate", "load", "stream_generate"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
