"""Options of the commands that run a model, named as in mlx-lm where it has them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gemma_surgery.errors import SurgeryError

DTYPES = ("float32", "bfloat16")
ACTIVATIONS = ("full", "int16", "int8")

Model = Annotated[str | None, typer.Argument(help="Folder or Hugging Face repository id.")]
ModelOption = Annotated[str | None, typer.Option("--model", help="The same as MODEL.")]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="Instructions for the whole chat.")]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-m", help="Tokens to generate at most; -1: until the context is full.")
]
Temperature = Annotated[
    float, typer.Option("--temp", "--temperature", help="Randomness; 0 always takes the likeliest token.")
]
TopP = Annotated[float, typer.Option("--top-p", help="Draw from the likeliest tokens of this total share.")]
TopK = Annotated[int, typer.Option("--top-k", help="Draw from so many likeliest tokens; 0: all.")]
MinP = Annotated[
    float, typer.Option("--min-p", help="Draw from tokens at least this times as likely as the best.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Of the random numbers; default: a new one.")]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: make recent tokens less likely.")
]
RepetitionContextSize = Annotated[
    int, typer.Option("--repetition-context-size", help="How many recent tokens that looks at.")
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text that ends the answer and is not shown. May be repeated."),
]
StopOnRepetition = Annotated[
    bool, typer.Option("--stop-on-repetition", help="End the answer when it has fallen into a loop.")
]
PanAndScan = Annotated[
    bool | None,
    typer.Option("--pan-and-scan/--no-pan-and-scan", help="Also show pieces of images far from square."),
]
DraftModel = Annotated[
    str | None, typer.Option("--draft-model", help="A smaller checkpoint that proposes tokens: same answers.")
]
NumDraftTokens = Annotated[
    int, typer.Option("--num-draft-tokens", min=1, help="Proposals per pass of the model.")
]
KvBits = Annotated[
    int | None, typer.Option("--kv-bits", help="Keep keys and values in 2, 3, 4, 5, 6 or 8 bits.")
]
KvGroupSize = Annotated[int, typer.Option("--kv-group-size", help="Values per scale of them: 32, 64 or 128.")]
QuantizedKvStart = Annotated[
    int, typer.Option("--quantized-kv-start", min=0, help="Tokens to see before they are quantized.")
]
PrefillStepSize = Annotated[
    int, typer.Option("--prefill-step-size", min=1, help="Prompt tokens per forward pass.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="Of activations: float32 or bfloat16; default: the checkpoint's."),
]
Activations = Annotated[
    str,
    typer.Option(
        "--activations",
        help="Bits of them in products with quantized weights on a CPU: full, int16, or coarse int8.",
    ),
]
Trials = Annotated[
    int, typer.Option("--num-trials", "-n", min=1, help="Timed trials; one more comes first for warming up.")
]
SavePromptCache = Annotated[
    Path | None,
    typer.Option("--save-prompt-cache", help="Keep what the prompt made of the model in this file."),
]
PromptCacheFile = Annotated[
    Path | None,
    typer.Option("--prompt-cache-file", help="Such a file: what prompts have in common is not read again."),
]


def one_model(argument: str | None, option: str | None, where: str) -> str:
    """Return the model that was given in one of two ways.

    Raises:
        SurgeryError: it was given in none of them, or in both.
    """
    if argument is not None and option is not None:
        raise SurgeryError(where, f"need one model, got `{argument}` and with `--model` `{option}`")
    model = argument if argument is not None else option
    if model is None:
        raise SurgeryError(where, "need a model, got none", f"gemma-surgery {where} MODEL")
    return model


def check_precision(name: str | None, activations: str) -> None:
    """Raise SurgeryError unless activations can be of this type and enter products like this."""
    if activations not in ACTIVATIONS:
        raise SurgeryError("model", f"need activations out of {', '.join(ACTIVATIONS)}, got `{activations}`")
    if name is not None and name not in DTYPES:
        hint = "Gemma 3 overflows float16" if name == "float16" else None
        raise SurgeryError("model", f"need a dtype out of {', '.join(DTYPES)}, got `{name}`", hint)


def without_escapes(text: str) -> str:
    r"""Turn a literal `\n` and `\t`, as shells pass them on, into a line break and a tab."""
    return text.replace("\\n", "\n").replace("\\t", "\t")
