"""`generate`: answer one prompt, about images too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemma_surgery.cli import generation_options as options
from gemma_surgery.cli.answers import note, repetition_line, show, statistics_lines
from gemma_surgery.cli.console import print_json
from gemma_surgery.cli.interruption import Interruption
from gemma_surgery.cli.options import Revision
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.generation.stream import Generated
    from gemma_surgery.session.engine import Engine, Question

RULE = "=" * 10
INTERRUPTED = 130

Images = Annotated[
    list[str] | None, typer.Option("--image", help="Image file, shown before the text. May be repeated.")
]
PromptText = Annotated[
    str | None,
    typer.Option(
        "--prompt", "-p", help="The prompt; `-` or nothing: from stdin. `\\n` and `\\t` are expanded."
    ),
]
IgnoreChatTemplate = Annotated[
    bool, typer.Option("--ignore-chat-template", help="Continue the prompt as it is, without turns.")
]
Verbose = Annotated[bool, typer.Option("--verbose/--quiet", help="Show statistics, or the text alone.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line, no text before.")]


def command(
    model: options.Model = None,
    model_option: options.ModelOption = None,
    image: Images = None,
    prompt: PromptText = None,
    system_prompt: options.SystemPrompt = None,
    max_tokens: options.MaxTokens = 256,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    repetition_context_size: options.RepetitionContextSize = 20,
    stop: options.Stop = None,
    stop_on_repetition: options.StopOnRepetition = False,
    ignore_chat_template: IgnoreChatTemplate = False,
    pan_and_scan: options.PanAndScan = None,
    draft_model: options.DraftModel = None,
    num_draft_tokens: options.NumDraftTokens = 3,
    kv_bits: options.KvBits = None,
    kv_group_size: options.KvGroupSize = 64,
    quantized_kv_start: options.QuantizedKvStart = 0,
    prefill_step_size: options.PrefillStepSize = 512,
    prompt_cache_file: options.PromptCacheFile = None,
    save_prompt_cache: options.SavePromptCache = None,
    dtype: options.Dtype = None,
    activations: options.Activations = "full",
    revision: Revision = None,
    verbose: Verbose = True,
    json: Json = False,
) -> None:
    """Answer one prompt, streaming the text."""
    name = options.one_model(model, model_option, "generate")
    options.check_precision(dtype, activations)
    text = _prompt_text(prompt)
    _check_folder_of(save_prompt_cache)

    import mlx.core as mx

    from gemma_surgery.models import CacheOptions
    from gemma_surgery.session.engine import Engine, Question, Settings, Source

    settings = Settings(
        max_tokens=max_tokens,
        temperature=temp,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        repetition_context_size=repetition_context_size,
        stop=tuple(map(options.without_escapes, stop or ())),
        stop_on_repetition=stop_on_repetition,
        prefill_step_size=prefill_step_size,
        num_draft_tokens=num_draft_tokens,
        kv=CacheOptions(kv_bits, kv_group_size, quantized_kv_start),
    )
    question = Question(text, tuple(image or ()), not ignore_chat_template, system_prompt, pan_and_scan)
    source = Source.open(name, revision)
    # Before any weight is read: a bad image is found at once.
    written = question.prompt(source.tokenizer, source.config)
    held = prompt_cache_file if prompt_cache_file is not None and prompt_cache_file.exists() else None
    engine = Engine.load(
        source,
        settings,
        dtype=None if dtype is None else getattr(mx, dtype),
        activations=activations,
        draft_model=draft_model,
        remembers=save_prompt_cache is not None,
        prompt_cache=held,
    )
    answer = _Answer(engine, save_prompt_cache, frame=verbose and not json, streams=not json)
    answer.run(question, written)
    if engine.reader is not None and prompt_cache_file is not None:
        note(f"prompt cache: {engine.reader.reused} of {len(written.tokens)} tokens were read before")
    elif prompt_cache_file is not None:
        note(f"note: `{prompt_cache_file}` does not exist yet: the whole prompt was read")
    answer.report(statistics=verbose, as_json=json)
    if answer.interrupted:
        note("interrupted")
        raise typer.Exit(INTERRUPTED)


class _Answer:
    """One answer as it comes, and what is said about it in the end."""

    def __init__(self, engine: Engine, save_to: Path | None, frame: bool, streams: bool) -> None:
        self.engine, self.save_to, self.frame, self.streams = engine, save_to, frame, streams
        self.pieces: list[str] = []
        self.last: Generated | None = None
        self.interrupted = False

    def run(self, question: Question, prompt: Any) -> None:
        """Stream the text between two rules; Ctrl-C ends it after the token that is under way."""
        engine, saved = self.engine, None
        with Interruption() as interruption:
            steps = engine.answer(question, prompt, interruption.check)
            if self.frame:
                show(f"{RULE}\n")
            try:
                for step in steps:
                    if self.last is None and self.save_to is not None and engine.reader is not None:
                        saved = engine.reader.snapshot()
                    self.last = step
                    self.pieces.append(step.text)
                    if self.streams:
                        show(step.text)
                    interruption.check()
            except KeyboardInterrupt:
                self.interrupted = self.last is None or self.last.finish_reason is None
        if self.streams:
            show("\n")
        if self.frame:
            show(f"{RULE}\n")
        if saved is not None and self.save_to is not None:
            from gemma_surgery.generation.prompt_cache import save_prompt_cache

            save_prompt_cache(self.save_to, engine.model, saved)

    def report(self, statistics: bool, as_json: bool) -> None:
        """Print statistics or JSON to stdout, and what looks wrong to stderr."""
        text = "".join(self.pieces)
        if self.last is None:
            return
        loop = repetition_line(self.last)
        if loop is not None:
            note(loop)
        if statistics and not text and not as_json:
            show("No text generated for this prompt\n")
        elif statistics:
            show("".join(f"{line}\n" for line in statistics_lines(self.last, self.engine.draft is not None)))
        if as_json:
            print_json(self._document(self.last, text))

    def _document(self, last: Generated, text: str) -> dict[str, object]:
        document: dict[str, object] = {
            "text": text,
            "prompt_tokens": last.prompt_tokens,
            "prompt_tps": round(last.prompt_tps, 3),
            "generation_tokens": last.generation_tokens,
            "generation_tps": round(last.generation_tps, 3),
            "peak_memory_bytes": last.peak_memory_bytes,
            "finish_reason": "interrupted" if self.interrupted else last.finish_reason,
        }
        if self.engine.draft is not None:
            document |= {"drafted": last.drafted, "accepted": last.accepted}
        if last.repetition is not None:
            document["repetition"] = vars(last.repetition)
        return document


def _prompt_text(prompt: str | None) -> str:
    """The prompt as given, or all of stdin.

    Raises:
        SurgeryError: there is neither, or stdin is not UTF-8.
    """
    if prompt is not None and prompt != "-":
        return options.without_escapes(prompt)
    if prompt is None and sys.stdin.isatty():
        raise SurgeryError("generate", "need a prompt, got none", "give `--prompt TEXT`, or pipe it in")
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise SurgeryError("generate", "need a prompt in UTF-8, got something else on stdin") from None
    if not text.strip():
        raise SurgeryError(
            "generate", "need a prompt, got nothing on stdin", "give `--prompt TEXT`, or pipe it in"
        )
    return text


def _check_folder_of(path: Path | None) -> None:
    if path is not None and not path.parent.is_dir():
        raise SurgeryError("generate", f"need a folder to write `{path.name}` to, got `{path.parent}`")
