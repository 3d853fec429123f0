"""`synth`: a random-weight checkpoint of a published shape, to exercise real scale offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.cli import options
from gemma_surgery.cli.console import TransferProgress, out, print_json, remarks, size
from gemma_surgery.families.published import published
from gemma_surgery.surgery.executor import execute
from gemma_surgery.synthesis import synthesis_plan

Shape = Annotated[
    str, typer.Argument(help="E.g. gemma-3-4b-it-qat-4bit (MLX 4-bit) or gemma-3-4b-it (bf16); 270m to 27b.")
]
Tokenizer = Annotated[Path | None, typer.Option(help="Folder with the tokenizer files to carry along.")]
Seed = Annotated[int, typer.Option(help="Seed of the random values.")]


def command(
    shape: Shape,
    output: options.Output,
    tokenizer: Tokenizer = None,
    seed: Seed = 0,
    overwrite: options.Overwrite = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Write a checkpoint with the names, shapes, dtypes and configs of a published one and random weights."""
    plan = synthesis_plan(shape, published(shape), tokenizer, seed)
    progress = TransferProgress(f"writing {output.name}", quiet)
    outcome = execute(plan, output, threads=threads, overwrite=overwrite, progress=progress)
    num_tensors = sum(len(planned.parts) for planned in plan.tensors)
    if tokenizer is None:
        remarks().print("note: no tokenizer files; `prune_vocabulary` needs --tokenizer")
    if json:
        print_json(
            {"tensors": num_tensors, "tensor_bytes": plan.output_bytes, "seconds": round(outcome.seconds, 3)}
        )
        return
    out().print(f"{num_tensors:,} tensors, {size(plan.output_bytes)} of tensor data in {output}")
    out().print(f"{outcome.seconds:.2f} s")
