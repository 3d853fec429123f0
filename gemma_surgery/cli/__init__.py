"""The command line: one file per command, each thin."""

from __future__ import annotations

import sys

import typer

from gemma_surgery import __version__
from gemma_surgery.cli import (
    bench,
    chat,
    compress,
    demo,
    doctor,
    evaluate,
    generate,
    inspect,
    plan,
    profile,
    report,
    search,
    synth,
    verify,
)
from gemma_surgery.errors import SurgeryError, SurgeryErrors

app = typer.Typer(
    name="gemma-surgery",
    help="Cut Gemma checkpoints down for small devices in one streamed pass, and prove what it cost.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    inspect,
    plan,
    compress,
    verify,
    profile,
    evaluate,
    search,
    report,
    generate,
    chat,
    bench,
    synth,
    doctor,
    demo,
):
    name = module.__name__.rsplit(".", 1)[1]
    # A module called `eval` would hide the built-in function.
    app.command("eval" if module is evaluate else name)(module.command)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gemma-surgery {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line. Exit code 0: success, 2: the user's error, 1: a failure of ours."""
    try:
        app()
    except SurgeryError as error:
        problems = error.errors if isinstance(error, SurgeryErrors) else [error]
        _fail("\n".join(f"error: {problem}" for problem in problems), 2)
    except KeyboardInterrupt:
        _fail("interrupted; finished tensors are kept for --resume", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        _fail(f"error: internal: {type(error).__name__}: {error}\nhint: please report this", 1)


def _fail(text: str, code: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(code)
