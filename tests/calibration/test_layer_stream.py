"""A model that runs layer by layer computes what it computes whole, bit for bit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrating import run_whole, samples_of, whole_model

from gemma_surgery.calibration.activations import Activations
from gemma_surgery.calibration.stream import LayerStream
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError

CASES = [
    ("dense", mx.bfloat16),
    ("dense", mx.float32),
    ("quantized", mx.bfloat16),
    ("quantized", mx.float32),
    ("mobile", mx.float32),
]


@pytest.mark.parametrize(("fixture", "dtype"), CASES, ids=lambda value: str(value).rpartition(".")[2])
def test_streamed_states_equal_those_of_the_whole_model(
    fixture: str, dtype: mx.Dtype, pictures: Path, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(fixture)
    samples = samples_of(folder, 2, pictures)
    assert [sample.pixels is None for sample in samples] == [True, True, False, False]
    states = LayerStream(open_checkpoint(folder), dtype).final_states(samples)
    model = whole_model(folder, dtype)
    for index, sample in enumerate(samples):
        expected = np.asarray(run_whole(model, sample).astype(mx.float32))
        assert np.array_equal(states[index], expected), index


def test_states_in_a_file_equal_those_in_memory(dense: Path, pictures: Path) -> None:
    samples = samples_of(dense, 2, pictures)
    checkpoint = open_checkpoint(dense)
    kept = LayerStream(checkpoint).final_states(samples)
    spilled = LayerStream(checkpoint, spill_bytes=0).final_states(samples)
    assert (kept.is_spilled, spilled.is_spilled) == (False, True)
    assert np.array_equal(kept.all, spilled.all)


def test_states_are_spilled_beyond_the_budget_and_not_at_it(tmp_path: Path) -> None:
    assert not Activations([3, 4], 8, 7 * 8 * 4).is_spilled
    spilled = Activations([3, 4], 8, 7 * 8 * 4 - 1, tmp_path)
    assert spilled.is_spilled and list(tmp_path.iterdir()) == []
    spilled[1] = np.full((4, 8), 2, np.float32)
    assert (spilled[0] == 0).all() and (spilled[1] == 2).all()
    spilled.close()


def test_states_that_cannot_be_spilled_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"need 128 bytes for activations in `.*missing`: ") as caught:
        Activations([4], 8, 0, tmp_path / "missing")
    assert caught.value.hint is not None and "TMPDIR" in caught.value.hint


def test_images_need_a_tower(mobile: Path, text_only: Path, pictures: Path) -> None:
    samples = samples_of(mobile, 1, pictures)
    with pytest.raises(SurgeryError, match="need a vision tower for images, got the text-only checkpoint"):
        LayerStream(open_checkpoint(text_only)).final_states(samples)


def test_progress_is_told_of_every_token_in_every_layer(dense: Path) -> None:
    class Told:
        total, done, finished = 0, 0, False

        def begin(self, total: int) -> None:
            self.total = total

        def advance(self, amount: int) -> None:
            self.done += amount

        def finish(self) -> None:
            self.finished = True

    told = Told()
    samples = samples_of(dense, 2)
    stream = LayerStream(open_checkpoint(dense), progress=told)
    stream.final_states(samples)
    tokens = sum(len(sample.tokens) for sample in samples)
    assert told.total == told.done == tokens * stream.config.text.num_layers and told.finished
