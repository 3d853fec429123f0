"""Timing prompts and generation, one model or two in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from gemma_surgery.generation.prefill import PREFILL_STEP_SIZE
from gemma_surgery.generation.stream import stream_generate
from gemma_surgery.measurement.traffic import kv_bytes_per_token, weight_bytes_per_token
from gemma_surgery.measurement.workload import SEED, Workload, workload_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from gemma_surgery.generation.prompt import Prompt
    from gemma_surgery.generation.tokenizer import Tokenizer
    from gemma_surgery.models import Gemma3Model


@dataclass
class Subject:
    """A loaded model to measure.

    Attributes:
        name: for people.
        resident_bytes: what it keeps in MLX's memory between trials: its weights, vision once it was needed.
    """

    name: str
    model: Gemma3Model
    tokenizer: Tokenizer
    resident_bytes: int

    @staticmethod
    def load(
        model: str | Path,
        dtype: mx.Dtype | None = None,
        activations: str = "full",
        revision: str | None = None,
    ) -> Subject:
        """Load a checkpoint and note what it takes.

        Raises:
            SurgeryError: as `gemma_surgery.load`.
        """
        from gemma_surgery.generation.loading import load

        before = mx.get_active_memory()
        loaded, tokenizer = load(model, dtype=dtype, activations=activations, revision=revision)
        return Subject(str(model), loaded, tokenizer, mx.get_active_memory() - before)


@dataclass(frozen=True)
class Trial:
    """One timed run.

    Attributes:
        prompt_tps: prompt tokens per second, images included, up to the first generated token.
        generation_tps: tokens after the first, per second.
        vision_seconds: time in the vision tower, 0 without images.
        peak_bytes: most memory that MLX had in use, without what other models kept.
        seconds: all together.
    """

    prompt_tps: float
    generation_tps: float
    vision_seconds: float
    peak_bytes: int
    seconds: float


@dataclass(frozen=True)
class Spread:
    """Median, least and most of several trials."""

    median: float
    least: float
    most: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Sum up at least one value."""
        return Spread(statistics.median(values), min(values), max(values))

    @property
    def relative(self) -> float:
        """Distance between most and least as a share of the median."""
        return (self.most - self.least) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Row:
    """What the trials of one model on one workload gave.

    Attributes:
        model: name of the subject.
        prompt_tokens: text and image tokens together.
        weight_bytes: weights read per generated token.
        kv_bytes: keys and values read per generated token, on average.
    """

    model: str
    workload: Workload
    prompt_tokens: int
    trials: tuple[Trial, ...]
    weight_bytes: int
    kv_bytes: float

    @property
    def prompt_tps(self) -> Spread:
        """Prompt tokens per second."""
        return Spread.of([trial.prompt_tps for trial in self.trials])

    @property
    def generation_tps(self) -> Spread:
        """Generated tokens per second."""
        return Spread.of([trial.generation_tps for trial in self.trials])

    @property
    def vision_seconds(self) -> Spread:
        """Seconds in the vision tower per prompt."""
        return Spread.of([trial.vision_seconds for trial in self.trials])

    @property
    def peak_bytes(self) -> int:
        """Most memory in use in any trial."""
        return max(trial.peak_bytes for trial in self.trials)

    @property
    def bytes_per_token(self) -> float:
        """Bytes read per generated token."""
        return self.weight_bytes + self.kv_bytes

    @property
    def bytes_per_second(self) -> float:
        """Bytes read per second while generating, at the median speed."""
        return self.bytes_per_token * self.generation_tps.median

    def ratios(self, other: Row) -> dict[str, float]:
        """This row over another of the same workload; speeds as the median over pairs of trials.

        Neighbours in time are compared, so that what slows the machine down for a while slows both.
        """
        pairs = list(zip(self.trials, other.trials, strict=True))
        ratios = {
            "prompt_tps": statistics.median(mine.prompt_tps / its.prompt_tps for mine, its in pairs),
            "generation_tps": statistics.median(
                mine.generation_tps / its.generation_tps for mine, its in pairs
            ),
            "peak_memory_bytes": self.peak_bytes / other.peak_bytes,
            "bytes_per_token": self.bytes_per_token / other.bytes_per_token,
        }
        if self.workload.num_images:
            ratios["vision_seconds"] = statistics.median(
                mine.vision_seconds / its.vision_seconds for mine, its in pairs
            )
            # A model that sees an image in fewer tokens is faster by more than its tokens per second.
            ratios["prompt_seconds"] = statistics.median(
                self.prompt_tokens / mine.prompt_tps / (other.prompt_tokens / its.prompt_tps)
                for mine, its in pairs
            )
        return ratios


class TimedVision:
    """A model that notes how long its images take; in everything else it is the model itself.

    Attributes:
        seconds: time spent on images so far.
    """

    def __init__(self, model: Gemma3Model) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed_images(self, pixels: mx.array) -> mx.array:
        """Do as the model does, and wait for the result."""
        begin = time.perf_counter()
        tokens = self._model.embed_images(pixels)
        mx.eval(tokens)
        self.seconds += time.perf_counter() - begin
        return tokens


# Called with the subject's name, the number of the trial (0 for the warm-up) and its outcome.
TrialCallback = Callable[[str, int, Trial], None]


def measure_speed(
    subjects: Sequence[Subject],
    workload: Workload,
    num_trials: int,
    *,
    prefill_step_size: int = PREFILL_STEP_SIZE,
    seed: int = SEED,
    on_trial: TrialCallback | None = None,
) -> list[Row]:
    """Time a workload: one warm-up per subject, then the subjects in turn, trial by trial.

    Generation is greedy and does not stop at end-of-sequence tokens.

    Args:
        subjects: models that are loaded, one or several.
        workload: what to feed them.
        num_trials: counted trials, 1 or more.
        prefill_step_size: prompt tokens per forward pass.
        seed: of the prompt.
        on_trial: told about every trial.

    Returns:
        A row per subject, in order.

    Raises:
        SurgeryError: the workload does not fit a model.
    """
    prompts = [workload_prompt(subject.model, subject.tokenizer, workload, seed) for subject in subjects]
    trials: list[list[Trial]] = [[] for _ in subjects]
    for number in range(num_trials + 1):
        for subject, prompt, counted in zip(subjects, prompts, trials, strict=True):
            trial = run_trial(subject, prompt, workload.generation_tokens, prefill_step_size)
            if number:
                counted.append(trial)
            if on_trial:
                on_trial(subject.name, number, trial)
    return [
        Row(
            subject.name,
            workload,
            len(prompt.tokens),
            tuple(counted),
            weight_bytes_per_token(subject.model),
            kv_bytes_per_token(subject.model, len(prompt.tokens), workload.generation_tokens),
        )
        for subject, prompt, counted in zip(subjects, prompts, trials, strict=True)
    ]


def run_trial(
    subject: Subject, prompt: Prompt, generation_tokens: int, prefill_step_size: int = PREFILL_STEP_SIZE
) -> Trial:
    """Run a prompt and generate exactly so many tokens.

    Args:
        subject: the model; what it keeps afterwards is noted in it.
        prompt: from `workload_prompt`.
        generation_tokens: 2 or more.
        prefill_step_size: prompt tokens per forward pass.
    """
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = TimedVision(subject.model)
    begin = time.perf_counter()
    for step in stream_generate(  # noqa: B007
        model,  # type: ignore[arg-type]
        subject.tokenizer,
        prompt,
        max_tokens=generation_tokens,
        eos_token_ids=(),
        prefill_step_size=prefill_step_size,
    ):
        pass
    mx.synchronize()
    seconds = time.perf_counter() - begin
    # What other models keep is part of `before`, and not this one's business.
    peak_bytes = subject.resident_bytes + max(0, mx.get_peak_memory() - before)
    subject.resident_bytes += mx.get_active_memory() - before
    return Trial(step.prompt_tps, step.generation_tps, model.seconds, peak_bytes, seconds)
