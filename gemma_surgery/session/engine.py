"""A model set up to answer questions the way the user wants it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import is_vision_tensor
from gemma_surgery.generation.logits_processors import make_logits_processors
from gemma_surgery.generation.prefill import PREFILL_STEP_SIZE
from gemma_surgery.generation.prompt import Prompt, build_prompt
from gemma_surgery.generation.prompt_cache import load_prompt_cache
from gemma_surgery.generation.request import Draft
from gemma_surgery.generation.samplers import make_sampler
from gemma_surgery.generation.speculative import NUM_DRAFT_TOKENS
from gemma_surgery.generation.stream import Generated, stream_generate
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models import CacheOptions, Gemma3Model, load_model
from gemma_surgery.models.gemma3.config import ModelConfig, read_model_config
from gemma_surgery.models.kv_cache import DENSE
from gemma_surgery.session.prompt_reader import SLACK, PromptReader

if TYPE_CHECKING:
    import mlx.core as mx

    from gemma_surgery.generation.conversation import Message
    from gemma_surgery.generation.image_file import ImageSource
    from gemma_surgery.generation.prefill import ProgressCallback


@dataclass(frozen=True)
class Source:
    """A checkpoint that is opened, and of which no weight is read yet.

    Attributes:
        checkpoint: without vision files where these lie apart.
        tokenizer: its tokenizer.
        config: its config.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer
    config: ModelConfig

    @staticmethod
    def open(model: str | Path, revision: str | None = None) -> Source:
        """Open a folder or a Hugging Face repository.

        Raises:
            SurgeryError: no such checkpoint, another family, or no tokenizer.
        """
        checkpoint = open_checkpoint(model, revision, leave_out=is_vision_tensor)
        return Source(checkpoint, Tokenizer.load(checkpoint), read_model_config(checkpoint))


@dataclass(frozen=True)
class Settings:
    """How answers are made; see `stream_generate`, `make_sampler` and `make_logits_processors`."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    stop: tuple[str, ...] = ()
    stop_on_repetition: bool = False
    prefill_step_size: int = PREFILL_STEP_SIZE
    num_draft_tokens: int = NUM_DRAFT_TOKENS
    kv: CacheOptions = DENSE


@dataclass(frozen=True)
class Question:
    """What is asked; see `build_prompt`."""

    content: str | Sequence[Message]
    images: tuple[ImageSource, ...] = ()
    chat: bool = True
    system: str | None = None
    pan_and_scan: bool | None = None

    def prompt(self, tokenizer: Tokenizer, config: ModelConfig) -> Prompt:
        """Write the question in the tokens of a model.

        Raises:
            SurgeryError: as `build_prompt`.
        """
        return build_prompt(
            tokenizer,
            config,
            self.content,
            self.images,
            chat=self.chat,
            system=self.system,
            pan_and_scan=self.pan_and_scan,
        )


class Engine:
    """A model, perhaps with a draft model beside it.

    Args:
        model: the model.
        tokenizer: of the model.
        settings: how answers are made.
        draft: the draft model, or None.
        remembers: keep what was read, so that the next question is read only from where it differs.
        prompt_cache: a file with what the model has read before.

    Raises:
        SurgeryError: a setting outside its range, or a file that does not belong to the model.
    """

    def __init__(
        self,
        model: Gemma3Model,
        tokenizer: Tokenizer,
        settings: Settings,
        draft: Draft | None = None,
        remembers: bool = False,
        prompt_cache: Path | None = None,
    ) -> None:
        self.model, self.tokenizer, self.settings, self.draft = model, tokenizer, settings, draft
        self._sampler = make_sampler(
            settings.temperature, settings.top_k, settings.top_p, settings.min_p, settings.seed
        )
        self._processors = make_logits_processors(
            model,
            repetition_penalty=settings.repetition_penalty,
            repetition_context_size=settings.repetition_context_size,
        )
        self.reader: PromptReader | None = None
        self._draft_reader: PromptReader | None = None
        if remembers or prompt_cache is not None:
            options = replace(settings.kv, slack=max(SLACK, settings.num_draft_tokens))
            held = None
            if prompt_cache is not None:
                held = load_prompt_cache(prompt_cache, model)
                _check_storage(held.layers[0].options, settings.kv, prompt_cache)
            self.reader = PromptReader(model, options, held)
            self._draft_reader = PromptReader(draft.model, options) if draft is not None else None

    @staticmethod
    def load(
        source: Source,
        settings: Settings,
        *,
        dtype: mx.Dtype | None = None,
        activations: str = "full",
        draft_model: str | None = None,
        remembers: bool = False,
        prompt_cache: Path | None = None,
    ) -> Engine:
        """Read the weights of a checkpoint, and of a draft model's.

        Args:
            source: the opened checkpoint.
            settings: how answers are made.
            dtype: of activations; by default as the checkpoints were stored.
            activations: bits of them in products on a CPU, see `gemma_surgery.models.load_model`.
            draft_model: a folder or a Hugging Face repository id.
            remembers: see the class.
            prompt_cache: see the class.

        Raises:
            SurgeryError: config and tensors disagree, the draft model does not fit, or as the class.
        """
        # What is cheap to check comes before what takes time.
        draft_source = None if draft_model is None else Source.open(draft_model)
        model = load_model(source.checkpoint, dtype=dtype, activations=activations)
        draft = None
        if draft_source is not None:
            loaded = load_model(draft_source.checkpoint, dtype=dtype, activations=activations)
            draft = Draft.of(model, source.tokenizer, loaded, draft_source.tokenizer)
        return Engine(model, source.tokenizer, settings, draft, remembers, prompt_cache)

    def answer(
        self, question: Question, prompt: Prompt | None = None, progress: ProgressCallback | None = None
    ) -> Iterator[Generated]:
        """Answer a question, token by token.

        Args:
            question: what is asked.
            prompt: the question in the model's tokens, if it is written already.
            progress: told about the prompt tokens done and their total; what it raises stops the answer.

        Raises:
            SurgeryError: as `build_prompt` and `stream_generate`.
        """
        settings = self.settings
        whole = prompt or question.prompt(self.tokenizer, self.model.config)
        options: dict[str, Any] = {}
        if self.reader is not None:
            whole = self.reader.rest_of(whole)
            options["cache"] = self.reader.cache
        if self.draft is not None:
            options |= {
                "draft_model": self.draft,
                "num_draft_tokens": settings.num_draft_tokens,
                **self._draft_options(self.draft, question, whole),
            }
        return stream_generate(
            self.model,
            self.tokenizer,
            whole,
            max_tokens=settings.max_tokens,
            sampler=self._sampler,
            logits_processors=self._processors,
            stop=settings.stop,
            stop_on_repetition=settings.stop_on_repetition,
            cache_options=settings.kv,
            prefill_step_size=settings.prefill_step_size,
            prompt_progress_callback=progress,
            **options,
        )

    def _draft_options(self, draft: Draft, question: Question, prompt: Prompt) -> dict[str, Any]:
        """The prompt of the draft model, where it is not the main model's, and its cache."""
        if self._draft_reader is None and prompt.pixels is None:
            return {}
        if prompt.pixels is not None and not draft.model.has_vision:
            raise SurgeryError(
                "speculative",
                "need a draft model that takes images for a prompt with images,"
                f" got the text-only `{draft.model.checkpoint.path}`",
                "leave `--draft-model` out",
            )
        own = question.prompt(draft.tokenizer, draft.model.config)
        if self._draft_reader is None:
            return {"draft_prompt": own}
        return {
            "draft_prompt": self._draft_reader.rest_of(own),
            "draft_cache": self._draft_reader.cache,
        }


def _check_storage(held: CacheOptions, wanted: CacheOptions, path: Path) -> None:
    if wanted.bits is not None and (held.bits, held.group_size) != (wanted.bits, wanted.group_size):
        kept = "unquantized" if held.bits is None else f"in {held.bits} bits and groups of {held.group_size}"
        raise SurgeryError(
            "prompt-cache",
            f"need keys and values in {wanted.bits} bits and groups of {wanted.group_size},"
            f" got them {kept} in `{path}`",
            "leave `--kv-bits` out: the file decides",
        )
