"""`chat`: a conversation in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gemma_surgery.cli import generation_options as options
from gemma_surgery.cli.answers import note, repetition_line, show, statistics_lines
from gemma_surgery.cli.chat_input import ChatInput, Entry
from gemma_surgery.cli.interruption import Interruption
from gemma_surgery.cli.options import Revision
from gemma_surgery.errors import SurgeryError

if TYPE_CHECKING:
    from gemma_surgery.session.chat import ChatSession

HELP = """\
/image PATH   show an image with the next message; may be given several times
/system TEXT  set the system prompt; without a text, remove it
/reset        forget the conversation; the system prompt stays
/stats        speed and memory of the last answer, and room in the context
/save FILE    write the conversation as JSON
/load FILE    go on with a saved conversation
/help         this list
/exit         leave, as does the end of the input
A line that ends in a backslash goes on in the next one, and so does everything between two lines of \"\"\".
Ctrl-C stops an answer; what there is of it stays in the conversation.
A space before a slash makes it text."""


def command(
    model: options.Model = None,
    model_option: options.ModelOption = None,
    system_prompt: options.SystemPrompt = None,
    max_tokens: options.MaxTokens = 1024,
    temp: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    repetition_penalty: options.RepetitionPenalty = None,
    repetition_context_size: options.RepetitionContextSize = 20,
    stop: options.Stop = None,
    stop_on_repetition: options.StopOnRepetition = False,
    pan_and_scan: options.PanAndScan = None,
    draft_model: options.DraftModel = None,
    num_draft_tokens: options.NumDraftTokens = 3,
    kv_bits: options.KvBits = None,
    kv_group_size: options.KvGroupSize = 64,
    quantized_kv_start: options.QuantizedKvStart = 0,
    prefill_step_size: options.PrefillStepSize = 512,
    dtype: options.Dtype = None,
    activations: options.Activations = "full",
    revision: Revision = None,
) -> None:
    """Talk to a model; it remembers what was said."""
    name = options.one_model(model, model_option, "chat")
    options.check_precision(dtype, activations)

    import mlx.core as mx

    from gemma_surgery.models import CacheOptions
    from gemma_surgery.session.chat import ChatSession
    from gemma_surgery.session.engine import Engine, Settings, Source

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
    engine = Engine.load(
        Source.open(name, revision),
        settings,
        dtype=None if dtype is None else getattr(mx, dtype),
        activations=activations,
        draft_model=draft_model,
        remembers=True,
    )
    entries = ChatInput()
    if entries.is_terminal:
        note(f"{name}: /help lists the commands, /exit leaves")
    _Chat(ChatSession(engine, system_prompt, pan_and_scan), entries).run()


class _Chat:
    """Takes entries one after another; a problem with one of them never ends the conversation."""

    def __init__(self, session: ChatSession, entries: ChatInput) -> None:
        self.session, self.entries = session, entries
        self.commands: dict[str, Callable[[str], None]] = {
            "image": self._image,
            "system": self._system,
            "reset": self._reset,
            "stats": self._stats,
            "save": self._save,
            "load": self._load,
            "help": lambda _: note(HELP),
        }

    def run(self) -> None:
        """Go on until `/exit` or the end of the input."""
        while True:
            try:
                entry = self.entries.read()
            except KeyboardInterrupt:
                if not self.entries.is_terminal:
                    raise
                note("\n/exit leaves")
                continue
            if entry is None or entry.command in ("exit", "quit"):
                return
            try:
                self._take(entry)
            except SurgeryError as error:
                note(f"error: {error}")

    def _take(self, entry: Entry) -> None:
        if entry.command is None:
            self._say(entry.text)
            return
        run = self.commands.get(entry.command)
        if run is None:
            raise SurgeryError(
                "chat",
                f"need one of the commands, got `/{entry.command}`",
                "/help lists them; a space before the slash makes it text",
            )
        run(entry.text)

    def _say(self, text: str) -> None:
        session, step = self.session, None
        with Interruption() as interruption:
            steps = session.say(text, interruption.check)
            try:
                for step in steps:
                    show(step.text)
                    interruption.check()
            except KeyboardInterrupt:
                # Between two tokens or before the first: nothing is half done.
                steps.close()  # type: ignore[attr-defined]
        if step is None:
            note("interrupted before the answer began; the message is forgotten")
            return
        show("\n")
        if interruption.requested and step.finish_reason is None:
            note("interrupted; the answer stays in the conversation as far as it came")
        elif step.finish_reason == "length":
            full = step.generation_tokens != session.engine.settings.max_tokens
            why = "the context is full; `/reset` starts anew" if full else "`--max-tokens` sets that"
            note(f"note: the answer was cut off at {step.generation_tokens:,} tokens: {why}")
        loop = repetition_line(step)
        if loop is not None:
            note(loop)

    def _image(self, text: str) -> None:
        picture = self.session.attach(_path(text, "/image PATH"))
        note(f"{picture.path.name} goes with the next message")

    def _system(self, text: str) -> None:
        self.session.system = text or None
        note("system prompt set" if text else "system prompt removed")

    def _reset(self, text: str) -> None:
        self.session.reset()
        note("the conversation is forgotten")

    def _stats(self, text: str) -> None:
        session = self.session
        if session.last is not None:
            lines = statistics_lines(session.last, session.engine.draft is not None)
            show("".join(f"{line}\n" for line in lines))
            show(f"Reused: {session.reader.reused} tokens of the last prompt were in the cache\n")
        context = session.engine.model.config.text.max_position_embeddings
        show(f"Context: {session.context_tokens:,} of {context:,} tokens\n")

    def _save(self, text: str) -> None:
        from gemma_surgery.session.transcript import save_transcript

        path = Path(_path(text, "/save FILE"))
        save_transcript(path, self.session.system, self.session.turns)
        note(f"wrote {path}")

    def _load(self, text: str) -> None:
        from gemma_surgery.session.transcript import load_transcript

        path = Path(_path(text, "/load FILE"))
        system, turns = load_transcript(path)
        self.session.reset()
        self.session.system, self.session.turns = system, turns
        note(f"{len(turns)} messages from {path}")


def _path(text: str, usage: str) -> str:
    """A path as people and terminals write it: in quotes, or with backslashes before spaces."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    elif "\\ " in text and not Path(text).expanduser().exists():
        text = text.replace("\\ ", " ")
    if not text:
        raise SurgeryError("chat", f"need a path, got none: `{usage}`")
    return text
