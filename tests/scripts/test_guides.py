"""The documentation names what there is, its links lead somewhere, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from gemma_surgery import ops
from gemma_surgery._native import ext
from gemma_surgery.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
KERNELS = (ROOT / "docs/guide/kernels.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [each for each in targets if "://" not in each and not (page.parent / each).exists()]
    assert missing == []


def test_every_op_and_instruction_set_is_in_the_guide() -> None:
    assert [op for op in ops.__all__ if f"`{op}`" not in KERNELS] == []
    assert [isa for isa in ext.available_isas() if f"`{isa}`" not in KERNELS] == []


def test_every_command_is_in_a_guide() -> None:
    guides = "".join(page.read_text() for page in PAGES if page.parent.name == "guide")
    names = [command.name for command in app.registered_commands]
    assert [name for name in names if f"gemma-surgery {name}" not in guides] == []


def test_the_example_of_a_pruned_vocabulary_runs() -> None:
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", KERNELS, re.DOTALL)
        if "PrunedEmbedding" in block
    )
    random = np.random.default_rng(1)
    rows, width, original = 51, 2560, 80
    token_map = np.zeros(original, np.int32)
    token_map[random.choice(original, rows - 1, replace=False)] = np.arange(1, rows)
    table = np.vstack([np.zeros((1, width)), random.standard_normal((rows - 1, width))]).astype(np.float32)
    weight, scales, biases = mx.quantize(mx.array(table), group_size=64, bits=4, stream=mx.cpu)
    ids = mx.array(np.flatnonzero(token_map)[None, :45])
    names: dict[str, Any] = {"weight": weight, "scales": scales, "biases": biases}
    names |= {"token_map": mx.array(token_map), "ids": ids, "targets": ids, "decoder": lambda x: x}
    exec(example, names)
    # Each token's own row is nearest to its embedding.
    assert names["token"].item() == ids[0, -1].item()
    assert (names["tokens"][:, 0] == names["token"]).item()
    assert names["tokens"].shape == (1, 40) and (names["log_prob"] > -1).all().item()
