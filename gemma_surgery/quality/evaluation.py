"""Everything that `eval` measures, in order: distributions first, then what needs generation."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from gemma_surgery.calibration.passages import held_out_passages, read_passages
from gemma_surgery.calibration.samples import make_samples
from gemma_surgery.checkpoint.wording import listing
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.loading import load
from gemma_surgery.quality.contractions import contraction_samples, impossible_forms, score_contractions
from gemma_surgery.quality.divergence import Side, token_logprobs
from gemma_surgery.quality.images import (
    AgreementReport,
    Description,
    SceneReport,
    agreement_report,
    describe_images,
    describe_scenes,
)
from gemma_surgery.quality.protocol import CHUNK_TOKENS, SAMPLES, Scored, is_chat
from gemma_surgery.quality.referee import Referee
from gemma_surgery.quality.reference_cache import (
    ReferenceCache,
    cache_key,
    measure_reference,
    read_cache,
    write_cache,
)
from gemma_surgery.quality.repetition import continue_greedily
from gemma_surgery.quality.results import Evaluation
from gemma_surgery.quality.statistics import perplexity
from gemma_surgery.quality.step_costs import measure_steps
from gemma_surgery.quality.subject import ModelSource, Progresses, Subject, split_side
from gemma_surgery.quality.tasks import ExactTask, built_in_tasks, read_tasks, solve
from gemma_surgery.surgery.pool import Silent

if TYPE_CHECKING:
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model
    from gemma_surgery.recipes.recipe import Recipe

WHERE = "eval"
CONTINUATIONS = 8
# The drawn scenes that the demo model knows, instead of a folder of images.
SCENES = "scenes"
# What can be left out.
PARTS = ("divergence", "contractions", "repetition", "tasks", "images")

Loaded = tuple["Gemma3Model", "Tokenizer"]


def evaluate(
    model: ModelSource,
    reference: ModelSource | None = None,
    passages: Sequence[Passage] | None = None,
    *,
    samples: int = SAMPLES,
    max_tokens: int = CHUNK_TOKENS,
    chat: bool | None = None,
    images: Path | str | None = None,
    tasks: Path | None = None,
    skip: Collection[str] = (),
    cache: Path | None = None,
    recipe: Recipe | None = None,
    progress: Progresses | None = None,
) -> Evaluation:
    """Measure a checkpoint, alone or against the one that it was made of.

    Distributions are measured with one layer in memory at a time; repetition, tasks and images load whole
    models, one at a time.

    Args:
        model: folder, Hugging Face repository id or opened checkpoint.
        reference: the same of the original.
        passages: what is read; the built-in ones that are held out by default.
        samples: passages, or chunks of raw text, that are scored at most; images that are shown.
        max_tokens: of a sample.
        chat: score turns of a chat; by default where there is a chat template.
        images: a folder of images to describe, or `scenes` for the drawn ones that the demo model knows.
        tasks: a file of tasks; by default the built-in ones, for models that chat.
        skip: parts to leave out, of `PARTS`.
        cache: file that keeps the reference's distributions: written if it does not exist, else taken instead
            of running the reference; divergences are lower bounds then, and the reference's contractions are
            not measured.
        recipe: the one that made the model of the reference: what each of its steps costs is measured too, on
            the same samples.
        progress: makes a progress report for a phase of this name.

    Raises:
        SurgeryError: a checkpoint or file is not what it should be, or there is nothing to score.
    """
    _check(samples, skip, reference, cache, recipe)
    subject = Subject.open(model)
    run = _Run(
        subject,
        None if reference is None else Subject.open(reference),
        held_out_passages() if passages is None else tuple(passages),
        samples,
        max_tokens,
        is_chat(subject.tokenizer) if chat is None else chat,
        progress or (lambda phase: Silent()),
    )
    for each in (run.model, run.reference):
        if each is not None and max_tokens > each.config.text.max_position_embeddings:
            raise SurgeryError(
                WHERE,
                f"need at most {each.config.text.max_position_embeddings:,} tokens per sample, the context of"
                f" `{each.path}`, got {max_tokens:,}",
            )
    # Files are read before anything long begins.
    questions: Sequence[ExactTask] = ()
    if "tasks" not in skip and (run.chat or tasks is not None):
        questions = read_tasks(tasks) if tasks is not None else built_in_tasks()
    shown: Sequence[Passage] | str = ()
    if "images" not in skip and images is not None:
        shown = SCENES if images == SCENES else read_passages(Path(images))[:samples]
    result = Evaluation(str(run.model.path), str(run.reference.path) if run.reference else None)
    if not {"divergence", "contractions"} <= set(skip):
        result = run.distributions(
            result,
            cache,
            recipe,
            divergence="divergence" not in skip,
            contractions="contractions" not in skip,
        )
    result = run.generations(result, questions, shown, repetition="repetition" not in skip)
    return replace(result, seconds=run.seconds, notes=tuple(run.notes))


@dataclass(eq=False)
class _Run:
    """One evaluation: its subjects and what it has spent."""

    model: Subject
    reference: Subject | None
    passages: Sequence[Passage]
    samples: int
    max_tokens: int
    chat: bool
    progress: Progresses
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def distributions(
        self,
        result: Evaluation,
        cache: Path | None,
        recipe: Recipe | None,
        *,
        divergence: bool,
        contractions: bool,
    ) -> Evaluation:
        """Read the samples with both models and compare what they expect at each place."""
        referee: Referee | None = None
        scored: Sequence[Scored] = ()
        mine: Sequence[Scored] = ()
        if divergence:
            referee = self._referee()
            scored = referee.scored
            mine = scored if self.reference is None else referee.scored_by(self.model)
            result = replace(result, protocol=referee.protocol)
        total = sum(len(each.tokens) for each in scored)
        known: ReferenceCache | None = None
        key = ""
        if cache is not None and self.reference is not None and referee is not None:
            key = cache_key(self.reference.checkpoint.fingerprint, referee.protocol, scored)
            known = read_cache(cache, key, total) if cache.exists() else None

        side, forms = self._read(self.model, mine, contractions, "model")
        if contractions:
            result = replace(result, contractions=score_contractions(token_logprobs(forms)))
        if self.reference is None:
            if divergence:
                scores = np.concatenate(token_logprobs(side))
                result = replace(result, perplexity=perplexity(scores), positions=len(scores))
            return result
        expected: Side | ReferenceCache | None = known
        if known is None:
            # A cache keeps none of these: the runs that write and that read it report the same.
            own_forms = contractions and cache is None
            expected, forms = self._read(self.reference, scored, own_forms, "reference")
            if own_forms:
                result = replace(result, contractions_reference=score_contractions(token_logprobs(forms)))
        if referee is None:
            return result
        if cache is not None and isinstance(expected, Side):
            with self._phase("reference's likeliest tokens", total) as advance:
                expected = measure_reference(expected, advance=advance)
            write_cache(cache, key, expected)
        referee.expected = expected
        with self._phase("comparing", total) as advance:
            compared = referee.compare(side, advance)
        result = replace(result, divergence=compared, positions=compared.positions)
        if recipe is not None:
            begin = time.perf_counter()
            result = replace(result, steps=tuple(measure_steps(self.reference.checkpoint, recipe, referee)))
            self.seconds["steps"] = time.perf_counter() - begin
        return result

    def _referee(self) -> Referee:
        """Knows what is scored, in the tokens of the reference or of the model alone."""
        base = self.reference or self.model
        # Chunks of raw text are cut out of all passages.
        passages = self.passages[: self.samples] if self.chat else self.passages
        if base.config.vision is None or self.model.config.vision is None:
            given = len(passages)
            passages = [passage for passage in passages if passage.image is None]
            if len(passages) < given:
                self.notes.append(
                    f"{given - len(passages)} passages are left out: not both models see images"
                )
        return Referee(
            base,
            passages,
            samples=self.samples,
            max_tokens=self.max_tokens,
            chat=self.chat,
            images=True,
            progress=self.progress,
        )

    def generations(
        self,
        result: Evaluation,
        questions: Sequence[ExactTask],
        shown: Sequence[Passage] | str,
        *,
        repetition: bool,
    ) -> Evaluation:
        """Let the model talk: continuations, tasks, images; the reference for images only."""
        if shown and self.model.config.vision is None:
            self.notes.append("images are not measured: the model has no vision tower")
            shown = ()
        said: SceneReport | tuple[Description, ...] | None = None
        if shown and self.reference is not None and self.reference.config.vision is not None:
            said = self._describe(self._load(self.reference), shown, "reference's images")
        if not (repetition or questions or shown):
            return result
        loaded = self._load(self.model)
        if repetition:
            result = self._repetition(result, loaded)
        if questions:
            with self._phase("tasks", len(questions)) as advance:
                result = replace(result, tasks=solve(*loaded, questions, advance))
        if shown:
            mine = self._describe(loaded, shown, "images")
            report: SceneReport | AgreementReport
            if isinstance(mine, SceneReport):
                report = mine
                result = replace(result, images_reference=said if isinstance(said, SceneReport) else None)
            else:
                report = agreement_report(mine, said if isinstance(said, tuple) else ())
            result = replace(result, images=report)
        return result

    def _repetition(self, result: Evaluation, loaded: Loaded) -> Evaluation:
        passages = [passage for passage in self.passages if passage.image is None][:CONTINUATIONS]
        if not passages:
            self.notes.append("repetition is not measured: no passage is without an image")
            return result
        prompts = make_samples(
            passages,
            self.model.tokenizer,
            self.model.config,
            chat=self.chat,
            max_tokens=self.max_tokens,
        )
        with self._phase("continuations", len(prompts)) as advance:
            found = continue_greedily(*loaded, prompts, advance=advance)
        texts = [each.text for each in found.continuations]
        return replace(result, repetition=found, impossible_forms=tuple(impossible_forms(texts)))

    def _describe(
        self, loaded: Loaded, shown: Sequence[Passage] | str, phase: str
    ) -> SceneReport | tuple[Description, ...]:
        if isinstance(shown, str):
            with self._phase(phase, self.samples) as advance:
                return describe_scenes(*loaded, self.samples, advance)
        with self._phase(phase, len(shown)) as advance:
            return describe_images(*loaded, shown, advance)

    def _read(
        self, subject: Subject, scored: Sequence[Scored], contractions: bool, phase: str
    ) -> tuple[Side, Side]:
        """Both what is scored and the forms of contractions, in one pass over the weights."""
        forms = contraction_samples(subject.tokenizer, subject.config.bos_token_id) if contractions else []
        begin = time.perf_counter()
        side = subject.read([*scored, *forms], self.progress(phase))
        self.seconds[phase] = time.perf_counter() - begin
        return split_side(side, len(scored))

    def _load(self, subject: Subject) -> Loaded:
        # One whole model at a time: the one before has no user any more.
        gc.collect()
        mx.clear_cache()
        begin = time.perf_counter()
        loaded = load(subject.path)
        self.seconds["loading"] = self.seconds.get("loading", 0.0) + time.perf_counter() - begin
        return loaded

    @contextmanager
    def _phase(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        progress = self.progress(name)
        begin = time.perf_counter()
        progress.begin(total)
        try:
            yield progress.advance
        finally:
            progress.finish()
        self.seconds[name] = time.perf_counter() - begin


def _check(
    samples: int,
    skip: Collection[str],
    reference: ModelSource | None,
    cache: Path | None,
    recipe: Recipe | None,
) -> None:
    unknown = sorted(set(skip) - set(PARTS))
    if unknown:
        raise SurgeryError(WHERE, f"need parts to skip out of {', '.join(PARTS)}, got {listing(unknown)}")
    if samples < 1:
        raise SurgeryError(WHERE, f"need 1 sample or more, got {samples}")
    if cache is not None and reference is None:
        raise SurgeryError(WHERE, "need a reference for a cache of it, got none", "give `--reference` too")
    if recipe is not None and (reference is None or "divergence" in skip):
        lack, hint = ("a reference", "give `--reference` too")
        if reference is not None:
            lack, hint = ("the divergence", "do not leave it out with `--skip`")
        raise SurgeryError(WHERE, f"need {lack} for the cost of each step, got none", hint)
