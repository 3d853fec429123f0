"""`compress --recipe mobile` against a flushed copy of its source; from outside: compress_ratio.py."""

from __future__ import annotations

import os
import shutil

import pytest
from machine import flush_files
from models import checkpoint_path
from work import OURS, Work

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import SCALED
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.surgery.executor import execute

COPY = "cp + fsync"


@pytest.mark.parametrize("who", [OURS, COPY])
@pytest.mark.full
@pytest.mark.parametrize("name", ["demo, 4-bit", "4B, original"])
def test_compress(measure, request, tmp_path, who, name):
    source = checkpoint_path(name, request.config)
    overrides = SCALED if name.startswith("demo") else ()
    target = tmp_path / "out"
    weights = sorted(source.glob("*.safetensors"))

    def removed():
        shutil.rmtree(target, ignore_errors=True)
        os.sync()
        return (), {}

    def compress() -> None:
        execute(make_plan(open_checkpoint(source), load_recipe("mobile", overrides)), target)

    def copy() -> None:
        target.mkdir()
        for file in weights:
            shutil.copyfile(file, target / file.name)
        flush_files(target)

    source_bytes = sum(file.stat().st_size for file in weights)
    work = Work("compress", f"{name}, {source_bytes / 1e6:,.0f} MB", rate_bytes=source_bytes)
    measure(work, who, compress if who == OURS else copy, setup=removed)
