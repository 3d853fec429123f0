"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Folder or Hugging Face repository id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository id.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", "-r", help="Preset (lite, mobile, mobile-faithful) or TOML file.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a parameter: step.key=value. May be repeated."),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile", exists=True, dir_okay=False, help="Measured statistics of MODEL, from `profile`."
    ),
]
UsedProfile = Annotated[
    Path | None,
    typer.Option(
        "--profile", exists=True, dir_okay=False, help="Where the profile lies now that the recipe used."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress reports.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist yet.")]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Workers; default: the cores. Never changes a byte.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output folder.")]
