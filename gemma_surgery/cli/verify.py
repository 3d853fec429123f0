"""`verify`: is an output what it claims to be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli import options
from gemma_surgery.cli.console import TransferProgress, out, print_json
from gemma_surgery.verification import verify

Folder = Annotated[Path, typer.Argument(help="Folder written by `compress`.")]
Against = Annotated[
    str | None, typer.Option("--against", help="The source: derive every tensor from it once more.")
]


def command(
    folder: Folder,
    against: Against = None,
    profile: options.UsedProfile = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Check structure and hashes, and with --against derive every tensor again; exit code 1 on a problem."""
    source = open_checkpoint(against) if against is not None else None
    verdict = verify(folder, source, TransferProgress(f"verifying {folder.name}", quiet), profile)
    if json:
        print_json(verdict.to_json())
    else:
        for check in verdict.checks:
            out().print(f"checked: {check}")
        for note in verdict.notes:
            out().print(f"not checked: {note}")
        for problem in verdict.problems:
            out().print(f"problem: {problem}")
        out().print("ok" if verdict.ok else f"{len(verdict.problems)} problems")
    if not verdict.ok:
        raise typer.Exit(1)
