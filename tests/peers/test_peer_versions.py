"""These tests describe certain versions of the peers; with others installed, a failure may be theirs."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
PINS = [pin.split("==") for pin in PYPROJECT["project"]["optional-dependencies"]["peers"]]


@pytest.mark.parametrize(("package", "pinned"), PINS, ids=[package for package, _ in PINS])
def test_the_peer_installed_is_the_one_described_here(package, pinned):
    assert version(package).split("+")[0] == pinned, f"{package} is not the version that these tests describe"


def test_no_torch_of_another_build_came_in_by_a_side_door():
    assert torch.__version__.split("+")[0] == dict(PINS)["torch"]
    assert torch.zeros(1).device.type == "cpu"
