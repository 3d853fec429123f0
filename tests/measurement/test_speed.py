"""What is timed, in which order, and what the numbers are made of. No wall-clock bounds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.measurement.speed import Row, Spread, Subject, Trial, measure_speed
from gemma_surgery.measurement.workload import Workload, ordinary_ids, workload_prompt


@pytest.fixture(scope="module")
def original(tiny) -> Subject:
    return Subject.load(tiny)


@pytest.fixture(scope="module")
def small(compressed) -> Subject:
    return Subject.load(compressed)


def test_a_prompt_has_exactly_the_tokens_asked_for(original, small) -> None:
    for subject in (original, small):
        config = subject.model.config
        for images in (0, 2):
            prompt = workload_prompt(subject.model, subject.tokenizer, Workload(30, 4, images))
            assert len(prompt.tokens) == 30 + images * (config.vision.tokens_per_image + 2)
            assert prompt.tokens[0] == config.bos_token_id
            assert prompt.tokens.count(config.image_token_id) == images * config.vision.tokens_per_image
            size = config.vision.image_size
            assert prompt.pixels is None if not images else prompt.pixels.shape == (images, size, size, 3)


def test_prompts_repeat_and_follow_their_seed(original) -> None:
    prompts = [
        workload_prompt(original.model, original.tokenizer, Workload(30, 4), seed).tokens
        for seed in (1, 1, 2)
    ]
    assert prompts[0] == prompts[1] != prompts[2]


def test_ordinary_ids_have_text_and_no_special_meaning(small) -> None:
    ids = ordinary_ids(small.model, small.tokenizer)
    assert len(ids) > 500 and not set(ids.tolist()) & small.tokenizer.special_ids
    tokens = np.asarray(small.model.rows.to_rows(mx.array(ids.astype(np.int32))))
    # Row 0 of a compact table is the one of pruned ids.
    assert (tokens > 0).all() and len(set(tokens.tolist())) == len(tokens)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload(0, 8), "need 1 prompt token"),
        (Workload(8, 1), "need 2 tokens or more"),
        (Workload(8, 8, -1), "need a number of images"),
        (Workload(131_070, 8), "within the 131,072 tokens of the context"),
    ],
)
def test_workloads_that_make_no_sense_are_refused(original, workload, message) -> None:
    with pytest.raises(SurgeryError, match=message):
        workload_prompt(original.model, original.tokenizer, workload)


def test_subjects_take_turns_after_a_warm_up_each(original, small) -> None:
    order: list[tuple[str, int]] = []
    rows = measure_speed(
        [original, small], Workload(12, 3), 2, on_trial=lambda name, number, _: order.append((name, number))
    )
    assert order == [(name, number) for number in range(3) for name in (original.name, small.name)]
    assert [row.model for row in rows] == [original.name, small.name]
    for row in rows:
        assert len(row.trials) == 2
        for trial in row.trials:
            assert trial.prompt_tps > 0 and trial.generation_tps > 0 and trial.vision_seconds == 0
            # Two tokens after the first, and the prompt, within the whole.
            assert 12 / trial.prompt_tps + 2 / trial.generation_tps <= trial.seconds


def test_vision_time_is_part_of_the_prompt_time(original) -> None:
    row = measure_speed([original], Workload(5, 2, 2), 1)[0]
    trial = row.trials[0]
    assert row.prompt_tokens == 5 + 2 * 18
    assert 0 < trial.vision_seconds < row.prompt_tokens / trial.prompt_tps


def test_peak_memory_of_one_model_leaves_the_others_out(tiny, compressed) -> None:
    alone = measure_speed([Subject.load(tiny)], Workload(20, 3, 1), 1)[0]
    # Loading a second model must not show in the first one's peak.
    first, second = Subject.load(tiny), Subject.load(compressed)
    together = measure_speed([first, second], Workload(20, 3, 1), 1)
    assert together[0].peak_bytes == pytest.approx(alone.peak_bytes, rel=0.1)
    assert together[1].peak_bytes < together[0].peak_bytes
    # The vision tower was loaded on the way and stays.
    assert first.resident_bytes > first.model.text_bytes


def test_a_text_only_model_cannot_be_measured_with_images(compressed, tmp_path) -> None:
    for path in compressed.iterdir():
        if path.name not in ("vision_model.safetensors", "model.safetensors.index.json"):
            (tmp_path / path.name).symlink_to(path)
    subject = Subject.load(tmp_path)
    with pytest.raises(SurgeryError, match="need a vision tower for images"):
        measure_speed([subject], Workload(5, 2, 1), 1)


def trial(prompt_tps: float, generation_tps: float, vision: float, peak: int) -> Trial:
    return Trial(prompt_tps, generation_tps, vision, peak, 1.0)


def test_ratios_compare_neighbours_in_time() -> None:
    workload = Workload(100, 10, 1)
    # The machine slows down: each pair is 2x, 4x, 3x, and medians alone would say otherwise.
    mine = [trial(200, 20, 1.0, 50), trial(40, 4, 2.0, 60), trial(30, 3, 3.0, 40)]
    its = [trial(100, 10, 2.0, 100), trial(10, 1, 8.0, 120), trial(10, 1, 9.0, 110)]
    row = Row("a", workload, 120, tuple(mine), 1000, 24.0)
    other = Row("b", workload, 240, tuple(its), 2000, 48.0)
    ratios = row.ratios(other)
    assert ratios["prompt_tps"] == ratios["generation_tps"] == 3
    assert ratios["vision_seconds"] == pytest.approx(1 / 3)
    assert ratios["prompt_seconds"] == pytest.approx(120 / 240 / 3)
    assert ratios["peak_memory_bytes"] == 60 / 120
    assert ratios["bytes_per_token"] == 0.5
    assert row.bytes_per_second == 1024 * 4
    text = Row("a", Workload(100, 10), 100, tuple(mine), 1000, 24.0)
    assert set(text.ratios(text).values()) == {1.0} and "vision_seconds" not in text.ratios(text)


def test_a_spread_is_median_least_and_most() -> None:
    spread = Spread.of([4.0, 1.0, 3.0, 2.0])
    assert spread == Spread(2.5, 1.0, 4.0)
    assert spread.relative == pytest.approx(1.2)
