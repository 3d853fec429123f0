from __future__ import annotations

import subprocess
import sys

import pytest

import gemma_surgery


def test_importing_the_package_imports_no_mlx() -> None:
    program = "import sys, gemma_surgery; assert 'mlx' not in sys.modules; print(gemma_surgery.__version__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == gemma_surgery.__version__


def test_what_the_package_offers_is_there() -> None:
    for name in gemma_surgery.__all__:
        assert getattr(gemma_surgery, name) is not None
        assert name in dir(gemma_surgery)
    from gemma_surgery.generation.stream import generate, stream_generate

    assert gemma_surgery.generate is generate
    assert gemma_surgery.stream_generate is stream_generate


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gemma_surgery' has no attribute 'nonsense'"):
        _ = gemma_surgery.nonsense
