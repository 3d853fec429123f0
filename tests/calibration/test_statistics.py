"""Measured statistics are those of the activations of the whole model, computed directly in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrating import Recorder, profiled, run_whole, samples_of, whole_model
from mlx.nn.layers.base import Module

from gemma_surgery.calibration.profile import Profile, read_profile
from gemma_surgery.calibration.ranks import Ranks
from gemma_surgery.calibration.statistics import ChannelMoments, LayerStatistics
from gemma_surgery.calibration.stream import LayerStream, Site
from gemma_surgery.checkpoint.model_folder import open_checkpoint

TOLERANCE = 1e-5


@dataclass
class Seen:
    """Recorders of one layer."""

    layer: Recorder
    gate: Recorder
    down: Recorder
    out: Recorder
    out_matrix: np.ndarray
    heads: int


@dataclass
class Measured:
    """A profile, and by layer prefix what a whole model was seen to do on the same samples."""

    profile: Profile
    text: dict[str, Seen]
    vision: dict[str, Seen]


@pytest.fixture(scope="module", params=["dense", "quantized", "mobile"])
def measured(
    request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Measured:
    folder = request.getfixturevalue(request.param)
    samples = samples_of(folder, 3, pictures)
    path = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    checkpoint = profiled(folder, samples, path, hessians=("*",))
    model = whole_model(folder, mx.float32)
    # The tower is loaded by the first image.
    run_whole(model, samples[-1])
    text = {f"language_model.model.layers.{i}.": _record_text(each) for i, each in _replaced(model.decoder)}
    prefix = "vision_tower.vision_model.encoder.layers."
    vision = {f"{prefix}{i}.": _record_vision(each) for i, each in _replaced(model._vision)}
    for sample in samples:
        run_whole(model, sample)
    return Measured(read_profile(path, checkpoint.fingerprint), text, vision)


def _replaced(stack) -> list[tuple[int, Recorder]]:
    stack.layers = [Recorder(layer) for layer in stack.layers]
    return list(enumerate(stack.layers))


def _record_text(layer: Recorder) -> Seen:
    mlp, attention = layer.inner.mlp, layer.inner.self_attn
    matrix, heads = _values(attention.o_proj), attention._heads
    mlp.gate_proj, mlp.down_proj = Recorder(mlp.gate_proj), Recorder(mlp.down_proj)
    attention.o_proj = Recorder(attention.o_proj)
    return Seen(layer, mlp.gate_proj, mlp.down_proj, attention.o_proj, matrix, heads)


def _record_vision(layer: Recorder) -> Seen:
    inner = layer.inner
    matrix, heads = _values(inner.out_proj), inner._heads
    inner.fc1, inner.fc2, inner.out_proj = Recorder(inner.fc1), Recorder(inner.fc2), Recorder(inner.out_proj)
    return Seen(layer, inner.fc1, inner.fc2, inner.out_proj, matrix, heads)


def _values(linear) -> np.ndarray:
    rows = mx.arange(linear.matrix.weight.shape[0])
    return np.asarray(linear.matrix.take(rows, mx.float32)).astype(np.float64)


def all_seen(measured: Measured) -> list[tuple[str, Seen, dict[str, Recorder]]]:
    """Layer prefix, recorders, and those of the linears whose inputs were measured by name."""
    text = [
        (name, seen, {"mlp.down_proj": seen.down, "self_attn.o_proj": seen.out})
        for name, seen in measured.text.items()
    ]
    vision = [
        (name, seen, {"mlp.fc2": seen.down, "self_attn.out_proj": seen.out})
        for name, seen in measured.vision.items()
    ]
    assert len(text) >= 6 and len(vision) == 3
    return text + vision


def assert_near(got: np.ndarray, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def flap(samples: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Baseline and fluctuation as FLAP's released code runs them, sample by sample."""
    baseline = fluctuation = np.zeros(samples[0].shape[1])
    for n, x in enumerate(samples, start=1):
        baseline = baseline * (n - 1) / n + x.mean(axis=0) / n
        if n > 1:
            scatter = np.square(x - baseline).sum(axis=0)
            fluctuation = fluctuation * (n - 2) / (n - 1) + scatter / n
    return baseline, fluctuation


def test_activations_are_the_mean_magnitude_behind_the_gate(measured: Measured) -> None:
    for prefix, seen, _ in all_seen(measured):
        gates = np.concatenate(seen.gate.outputs)
        expected = np.abs(gelu_tanh(gates)).mean(axis=0)
        assert_near(measured.profile.activation(f"{prefix}mlp.", gates.shape[1]), expected)


def test_input_means_and_fluctuations_are_those_of_flaps_running_formula(measured: Measured) -> None:
    for prefix, _, linears in all_seen(measured):
        for name, recorder in linears.items():
            baseline, fluctuation = flap(recorder.inputs)
            width = len(baseline)
            assert_near(measured.profile.input_mean(prefix + name, width), baseline)
            assert_near(measured.profile.input_fluctuation(prefix + name, width), fluctuation)


def test_block_influence_is_one_minus_the_mean_cosine(measured: Measured) -> None:
    for prefix, seen, _ in all_seen(measured):
        x, y = np.concatenate(seen.layer.inputs), np.concatenate(seen.layer.outputs)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        expected = 1 - ((x * y).sum(axis=1) / norms).mean()
        assert measured.profile.block_influence(prefix) == pytest.approx(expected, rel=TOLERANCE)


def test_head_importance_is_the_mean_squared_norm_of_what_a_head_adds(measured: Measured) -> None:
    for prefix, seen, _ in all_seen(measured):
        inputs, heads = np.concatenate(seen.out.inputs), seen.heads
        columns = inputs.shape[1] // heads
        parts = [slice(head * columns, (head + 1) * columns) for head in range(heads)]
        added = [inputs[:, part] @ seen.out_matrix[:, part].T for part in parts]
        expected = np.array([np.square(each).sum() for each in added]) / len(inputs)
        assert_near(measured.profile.head_importance(f"{prefix}self_attn.", heads), expected)


def test_hessians_are_the_mean_outer_product_of_inputs_relative_to_outputs(measured: Measured) -> None:
    for prefix, _, linears in all_seen(measured):
        for name, recorder in linears.items():
            inputs = np.concatenate(recorder.inputs)
            # A norm follows the decoder's products, none those of the tower.
            weights = 1 / np.square(np.concatenate(recorder.outputs)).mean(axis=1)
            weights = weights if name in ("mlp.down_proj", "self_attn.o_proj") else np.ones(len(inputs))
            expected = (inputs * weights[:, None]).T @ inputs / weights.sum()
            got = measured.profile.hessian(prefix + name, inputs.shape[1]).astype(np.float64)
            assert measured.profile.hessian_count(prefix + name) == len(inputs)
            root = np.sqrt(np.diagonal(expected))
            assert np.array_equal(got, got.T)
            assert_near(np.diagonal(got), np.diagonal(expected))
            # Half a step of the stored correlation, and what float32 sums differ by.
            assert (np.abs(got - expected) <= 2e-5 * np.outer(root, root)).all()


def test_output_shares_are_flaps_score_of_each_neuron(measured: Measured) -> None:
    for prefix, seen in measured.text.items():
        _, fluctuation = flap(seen.down.inputs)
        added = fluctuation * np.square(_values(seen.down.inner)).sum(axis=0)
        got = measured.profile.output_share(f"{prefix}mlp.down_proj", len(added))
        assert_near(got, added / added.sum())


def test_the_closed_form_of_fluctuations_is_the_running_one() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 2, 7):
        samples = [
            rng.normal(3, 2, (int(rng.integers(1, 40)), 2500)).astype(np.float32) for _ in range(count)
        ]
        moments = ChannelMoments(2500, range(count))
        for sample in samples:
            moments.add(mx.array(sample))
        mean, fluctuation = moments.results(Ranks())
        baseline, expected = flap([sample.astype(np.float64) for sample in samples])
        assert_near(mean, baseline)
        if count == 1:
            assert (fluctuation == 0).all() and (expected == 0).all()
        else:
            assert_near(fluctuation, expected)


def test_a_layer_that_changes_little_has_an_exact_influence(dense: Path) -> None:
    results = {}
    statistics = LayerStatistics(Ranks(), lambda _: False, results.__setitem__, {"text": [0]})
    stream = LayerStream(open_checkpoint(dense))

    class Nudged:
        def begin(self, site, layer) -> None:
            statistics.begin(site, layer)

        def sample(self, before: mx.array, after: mx.array) -> None:
            turned = mx.concatenate([before[..., 1:], before[..., :1]], axis=-1)
            statistics.sample(before, before + 1e-4 * turned)
            self.x, self.y = (np.asarray(each[0], np.float64) for each in (before, before + 1e-4 * turned))

        def end(self) -> None:
            statistics.end()

    observer, samples = Nudged(), samples_of(dense, 1)
    stream.layer(0, samples, stream.embed(samples), observer)
    norms = np.linalg.norm(observer.x, axis=1) * np.linalg.norm(observer.y, axis=1)
    expected = np.mean(1 - (observer.x * observer.y).sum(axis=1) / norms)
    (got,) = results["language_model.model.layers.0.block_influence"]
    assert expected < 1e-8 and got == pytest.approx(expected, rel=1e-2)


def test_a_zero_state_leaves_the_influence_finite(dense: Path) -> None:
    results = {}
    statistics = LayerStatistics(Ranks(), lambda _: False, results.__setitem__, {"text": [0]})
    stream, samples = LayerStream(open_checkpoint(dense)), samples_of(dense, 1)
    states = stream.embed(samples)
    states[0][3] = 0
    stream.layer(0, samples, states, statistics)
    assert np.isfinite(results["language_model.model.layers.0.block_influence"]).all()


class Silenced(LayerStatistics):
    """Gives tokens from a certain one on no output of down_proj."""

    silent_from = 1 << 30

    def begin(self, site: Site, layer: Module) -> None:
        super().begin(site, layer)
        tap = layer.mlp.down_proj
        inner = tap.inner
        tap.inner = lambda x: mx.where(mx.arange(x.shape[1])[:, None] < self.silent_from, inner(x), 0)


def test_outputs_of_zero_count_nothing_in_a_hessian(dense: Path) -> None:
    name = "language_model.model.layers.0.mlp.down_proj"
    stream, (sample,) = LayerStream(open_checkpoint(dense)), samples_of(dense, 1)

    def diagonal(tokens: int, silent_from: int) -> np.ndarray:
        results: dict[str, np.ndarray] = {}
        statistics = Silenced(Ranks(), lambda linear: linear == name, results.__setitem__, {"text": [0]})
        statistics.silent_from = silent_from
        samples = [replace(sample, tokens=sample.tokens[:tokens])]
        stream.layer(0, samples, stream.embed(samples), statistics)
        return results[f"{name}.hessian_diagonal"]

    assert np.allclose(diagonal(40, silent_from=3), diagonal(3, silent_from=3), rtol=1e-5)
    assert (diagonal(40, silent_from=0) == 0).all()
