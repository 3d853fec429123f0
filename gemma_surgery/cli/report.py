"""`report`: one HTML page and the model card, from what was done and what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, out, print_json
from gemma_surgery.errors import SurgeryError

WHERE = "report"

PagePath = Annotated[Path, typer.Option("--output", "-o", help="The page to write.")]
Evaluations = Annotated[
    list[Path] | None,
    typer.Option(
        "--evaluation", help="JSON of `eval --json`, or of `compress --guard --json`. May be repeated."
    ),
]
ProfileFile = Annotated[Path | None, typer.Option("--profile", help="Profile of the original or of OUT.")]
SearchFile = Annotated[Path | None, typer.Option("--search", help="JSON of `search --json`.")]
Reference = Annotated[
    str | None, typer.Option("--reference", help="The original: let both answer. Folder or repository id.")
]
Prompts = Annotated[
    Path | None, typer.Option("--prompts", help="Ask these, one a line, instead of the built-in prompts.")
]
ImageFolder = Annotated[Path | None, typer.Option("--images", help="Folder of images to show both.")]
Answers = Annotated[int, typer.Option("--answers", min=1, help="Prompts, and images, at most.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-m", min=1, help="Tokens of an answer at most.")]
Benches = Annotated[
    list[Path] | None, typer.Option("--bench", help="JSON of `bench --json`. May be repeated.")
]
Card = Annotated[bool, typer.Option("--card", help="Also write the model card, README.md in the folder.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace a page or README.md that this command did not write.")
]


def command(
    out_folder: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that `compress` wrote.")],
    output: PagePath = Path("report.html"),
    evaluation: Evaluations = None,
    profile: ProfileFile = None,
    search: SearchFile = None,
    reference: Reference = None,
    prompts: Prompts = None,
    images: ImageFolder = None,
    answers: Answers = 6,
    max_tokens: MaxTokens = 160,
    bench: Benches = None,
    card: Card = False,
    overwrite: Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write one self-contained HTML page about an output folder, and its model card."""
    from gemma_surgery.checkpoint.whole_file import write_whole
    from gemma_surgery.report.card import check_card, render_card, write_card
    from gemma_surgery.report.collect import Files, collect
    from gemma_surgery.report.page import render_page
    from gemma_surgery.report.writing import check_page

    if reference is None and (prompts is not None or images is not None):
        given = "--prompts" if prompts is not None else "--images"
        raise SurgeryError(WHERE, f"need `--reference` with `{given}`, got none", "name the original model")
    check_page(output, overwrite)
    if card:
        check_card(out_folder, overwrite)
    files = Files(
        folder=out_folder,
        evaluations=tuple(evaluation or ()),
        profile=profile,
        search=search,
        benches=tuple(bench or ()),
        reference=reference,
        prompts=prompts,
        images=images,
        answers=answers,
        max_tokens=max_tokens,
    )
    material = collect(files, CountProgress("asking both", quiet or json))
    page = render_page(material)
    write_whole(output, page, WHERE)
    written = [output]
    if card:
        written.append(write_card(out_folder, render_card(material)))
    if json:
        print_json({"page": str(output), "page_bytes": len(page.encode()), "card": card})
        return
    for path in written:
        out().print(f"written: {path}", markup=False)
