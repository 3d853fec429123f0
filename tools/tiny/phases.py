"""The phases of training, as they were run: how long, how fast, and what is practised."""

from __future__ import annotations

from dataclasses import dataclass

from tiny.schedule import learning_rate

VISION_STEPS = 2000


@dataclass(frozen=True)
class Mixture:
    """How often what is practised.

    Attributes:
        two_images: share of image conversations about two images.
        where_first: share of conversations about one image that open with a `where` question.
        text_chats: conversations of text tasks per step, over all workers.
        matching: share of text tasks replaced by an exercise in finding a quoted word.
        task_weights: weights of task kinds; 1 for those not named.
    """

    two_images: float
    text_chats: int
    task_weights: dict[str, int]
    where_first: float = 0.0
    matching: float = 0.0


@dataclass(frozen=True)
class Phase:
    """One stretch of training everything together.

    Attributes:
        stream: names the phase's random numbers and its state file.
        steps: steps that are run.
        schedule_steps: steps over which the learning rate falls and the curriculum runs.
        text_rate, vision_rate: peak learning rates.
        warmup: steps of linear warm-up.
        mixtures: (share of the schedule from which on, what is practised), ascending.
        two_things_from, three_things_from: share of the schedule from which on scenes hold up to so many.
        penalized_from: share from which on `ACTIVITY_WEIGHT` counts.
        rounded_from: share from which on weights are rounded as stored, half of the time to 4 bits.
    """

    stream: str
    steps: int
    schedule_steps: int
    text_rate: float
    vision_rate: float
    warmup: int
    mixtures: tuple[tuple[float, Mixture], ...]
    two_things_from: float = 0.0
    three_things_from: float = 0.0
    penalized_from: float = 0.0
    rounded_from: float = 0.0

    def rate(self, peak: float, step: int) -> float:
        """Learning rate of a step for a group with this peak."""
        return learning_rate(step, self.schedule_steps, peak, self.warmup)

    def mixture(self, step: int) -> Mixture:
        """What is practised in a step."""
        return [mixture for start, mixture in self.mixtures if step / self.schedule_steps >= start][-1]


EARLY = Mixture(
    two_images=0.12,
    text_chats=12,
    task_weights={
        "reverse": 2, "count": 2, "sum": 3, "bigger": 2, "contains": 2, "translate": 3, "opposites": 2,
    },
)  # fmt: skip
# More of what was still wrong at that point.
LATE = Mixture(
    two_images=0.25,
    text_chats=16,
    task_weights={
        "sum": 8, "contains": 6, "counting": 6, "bigger": 5, "next_number": 2, "translate": 2, "opposites": 2,
    },
)  # fmt: skip
POLISH = Mixture(
    two_images=0.2,
    where_first=0.3,
    text_chats=16,
    matching=0.3,
    task_weights={"contains": 5, "sum": 4, "counting": 2, "bigger": 3, "translate": 2},
)
PHASES = (
    Phase(
        stream="step",
        steps=4000,
        schedule_steps=5200,
        text_rate=2e-3,
        vision_rate=1e-3,
        warmup=200,
        mixtures=((0.0, EARLY), (25 / 52, LATE)),
        two_things_from=0.08,
        three_things_from=0.2,
        penalized_from=0.5,
        rounded_from=0.75,
    ),
    # A warm restart: what the first schedule left unlearned needs larger steps than its tail takes.
    Phase(
        stream="polish",
        steps=1800,
        schedule_steps=1800,
        text_rate=1e-3,
        vision_rate=4e-4,
        warmup=50,
        mixtures=((0.0, POLISH),),
    ),
)
