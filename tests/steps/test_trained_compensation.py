"""Compensated against plain rounding on the trained demo model: what leaves its down_proj, and what it says."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrated import LAYERS, NUM_LAYERS, down_proj
from compressing import plan_steps
from independent import dequantize, read_all, value
from mlx.nn.layers.base import Module

from gemma_surgery.calibration.measure import Request, make_profile
from gemma_surgery.calibration.passages import Passage
from gemma_surgery.calibration.samples import Sample, make_samples
from gemma_surgery.calibration.statistics import Tap
from gemma_surgery.calibration.stream import LayerStream, Site
from gemma_surgery.checkpoint.model_folder import Checkpoint, open_checkpoint
from gemma_surgery.demo_model.split import Split
from gemma_surgery.demo_model.tasks import TASK_KINDS, random_task
from gemma_surgery.generation.tokenizer import Tokenizer
from gemma_surgery.models.gemma3.config import read_model_config
from gemma_surgery.quality.referee import Referee
from gemma_surgery.surgery.executor import execute

# About 24 tokens each: 18 and 2 tokens per column of down_proj.
CALIBRATION_TASKS, FEW_TASKS = 390, 43
HELD_OUT_TASKS = 240


def tasks(split: Split, count: int, seed: int) -> list[Passage]:
    rng = random.Random(seed)
    drawn = [random_task(rng, TASK_KINDS[index % len(TASK_KINDS)], split) for index in range(count)]
    return [Passage(task.kind, task.prompt, task.answer) for task in drawn]


class Inputs:
    """Observes what enters every down_proj, `[T, F]` per layer."""

    def __init__(self) -> None:
        self.of: dict[int, list[np.ndarray]] = {}

    def begin(self, site: Site, layer: Module) -> None:
        seen = self.of[site.index] = []
        layer.mlp.down_proj = Tap(layer.mlp.down_proj, lambda x, _: seen.append(np.asarray(x[0])))

    def sample(self, before: mx.array, after: mx.array) -> None:
        pass

    def end(self) -> None:
        pass


@dataclass
class Trained:
    """The demo model with what it is calibrated and judged on.

    Attributes:
        profiles: by number of tasks.
        inputs: of each down_proj on held-out tasks.
    """

    source: Checkpoint
    profiles: dict[int, Path]
    inputs: list[np.ndarray]
    referee: Referee
    folder: Path

    def candidate(self, bits: int, method: str, tasks: int = CALIBRATION_TASKS) -> Path:
        """The model with every down_proj rounded; made once."""
        output = self.folder / f"{bits} {method} {tasks}"
        if not output.exists():
            text = (
                f'profile = "{self.profiles[tasks]}"\n[[steps]]\nstep = "quantize"\nbits = {bits}\n'
                f'method = "{method}"\n'
                'rules = [{ match = "*.mlp.down_proj.weight" }, { match = "*", keep = true }]\n'
            )
            execute(plan_steps(self.source.path, self.folder, text), output)
        return output

    def divergence(self, *candidate: int | str) -> float:
        return self.referee.judge(self.candidate(*candidate)).kld.mean.value

    def output_errors(self, *candidate: int | str) -> np.ndarray:
        """`|(W - Q) x|^2` relative to `|W x|^2`, token by token and summed, `[layers, 2]`."""
        before, after = read_all(self.source.path), read_all(self.candidate(*candidate))
        errors = []
        for layer, x in enumerate(self.inputs):
            name = f"{down_proj(layer)}.weight"
            whole = x @ value(before, name).T
            lost = np.square(whole - x @ dequantize(after, name, candidate[0]).T).sum(axis=1)
            size = np.square(whole).sum(axis=1)
            errors.append(((lost / size).mean(), lost.sum() / size.sum()))
        return np.array(errors)


@pytest.fixture(scope="module")
def trained(tiny_dense: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, source = tmp_path_factory.mktemp("trained"), open_checkpoint(tiny_dense)
    # Without a template turns are written in the same format, many times faster.
    tokenizer = Tokenizer.from_folder(tiny_tokenizer)

    def samples(split: Split, count: int, seed: int) -> list[Sample]:
        passages = tasks(split, count, seed)
        return make_samples(passages, tokenizer, read_model_config(source), chat=True, max_tokens=64)

    profiles = {}
    for count in (CALIBRATION_TASKS, FEW_TASKS):
        profiles[count] = folder / f"{count}.profile"
        make_profile(
            source,
            samples("train", count, seed=1),
            profiles[count],
            Request("0" * 64, (f"{LAYERS}*.mlp.down_proj",)),
        )
    seen = Inputs()
    LayerStream(source).final_states(samples("held_out", HELD_OUT_TASKS, seed=2), seen)
    inputs = [np.concatenate(seen.of[layer]) for layer in range(NUM_LAYERS)]
    passages = tasks("held_out", HELD_OUT_TASKS, seed=3)
    return Trained(source, profiles, inputs, Referee(source, passages, samples=len(passages)), folder)


@pytest.mark.parametrize("bits", [2, 3])
def test_compensation_beats_rounding_in_every_layer_on_inputs_it_was_not_fitted_to(
    trained: Trained, bits: int
) -> None:
    compensated, rounded = (trained.output_errors(bits, method) for method in ("compensated", "round"))
    print((compensated/rounded).T.round(3))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_compensation_beats_rounding_in_divergence(trained: Trained, bits: int) -> None:
    print(bits, trained.divergence(bits, "compensated") , trained.divergence(bits, "round"))


@pytest.mark.parametrize("bits", [2, 3])
def test_compensation_by_2_tokens_per_column_is_no_worse_than_rounding(trained: Trained, bits: int) -> None:
    print(bits, trained.divergence(bits, "compensated", FEW_TASKS) , trained.divergence(bits, "round"))
