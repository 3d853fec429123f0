"""Layers that take the place of those of mlx.nn."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten
from ops_oracle import Table, assert_close, exact, random_array, random_table, raw

from gemma_surgery import nn as ours
from gemma_surgery.errors import SurgeryError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.QuantizedLinear(64, 96, bias=False, group_size=32, bits=8)
        self.down = [nn.QuantizedLinear(96, 64, group_size=32, bits=4), nn.Linear(64, 64)]
        self.odd = nn.QuantizedLinear(64, 64, mode="mxfp4")

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.down:
            x = layer(nn.relu(self.gate(x)) if layer is self.down[0] else x)
        return x + self.odd(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.QuantizedEmbedding(50, 64)
        self.blocks = [Block(), Block()]
        self.norm = nn.RMSNorm(64)

    def __call__(self, ids: mx.array) -> mx.array:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.embed.as_linear(self.norm(x))


@pytest.fixture
def model() -> Model:
    mx.random.seed(1)
    return Model()


def test_accelerate_replaces_what_it_can_and_names_the_rest(model: Model) -> None:
    report = ours.accelerate(model)
    block = ["gate", "down.0", "down.1"]
    assert sorted(report.replaced) == sorted(
        ["embed", *(f"blocks.{index}.{name}" for index in (0, 1) for name in block)]
    )
    assert report.kept == {f"blocks.{index}.odd": "mode `mxfp4`" for index in (0, 1)}
    assert type(model.embed) is ours.QuantizedEmbedding
    assert type(model.blocks[1].down[0]) is ours.QuantizedLinear
    assert type(model.blocks[1].down[1]) is ours.Linear
    assert type(model.blocks[0].odd) is nn.QuantizedLinear
    assert isinstance(model.blocks[0].gate, nn.QuantizedLinear)


def test_an_accelerated_model_computes_the_same(model: Model) -> None:
    ids = mx.array([[1, 2, 49], [0, 7, 7]])
    before = exact(model(ids))
    ours.accelerate(model)
    assert_close(model(ids), before, "float32")


def test_parameters_and_frozen_state_stay(model: Model) -> None:
    before = dict(tree_flatten(model.parameters()))
    trainable = {name for name, _ in tree_flatten(model.trainable_parameters())}
    ours.accelerate(model)
    after = dict(tree_flatten(model.parameters()))
    assert list(before) == list(after)
    assert all(after[name] is before[name] for name in before)
    assert {name for name, _ in tree_flatten(model.trainable_parameters())} == trainable


def test_accelerating_twice_changes_nothing(model: Model) -> None:
    ours.accelerate(model)
    assert ours.accelerate(model).replaced == []


def test_weights_can_be_loaded_after_accelerating(model: Model) -> None:
    other = Model()
    ours.accelerate(model)
    model.update(other.parameters())
    ids = mx.array([[3, 4]])
    assert_close(model(ids), exact(other(ids)), "float32")


def test_an_accelerated_model_trains_what_is_not_frozen(model: Model) -> None:
    ids = mx.array([[1, 2, 3]])

    def loss(model: Model) -> mx.array:
        return model(ids).square().mean()

    gradients = [dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1]))]
    ours.accelerate(model)
    gradients.append(dict(tree_flatten(nn.value_and_grad(model, loss)(model)[1])))
    assert list(gradients[0]) == list(gradients[1])
    for name, stock in gradients[0].items():
        assert_close(gradients[1][name], exact(stock), "float32", 1e-4)


def test_subclasses_are_left_alone() -> None:
    class Special(nn.Linear):
        pass

    model = nn.Sequential(Special(64, 64), nn.Linear(64, 64))
    assert ours.accelerate(model).replaced == ["layers.1"]


def test_a_layer_takes_coarser_activations() -> None:
    stock = nn.QuantizedLinear(128, 64)
    layer = ours.QuantizedLinear.from_quantized_linear(stock)
    x = random_array(1, 3, 128)
    full = exact(layer(x))
    layer.activations = "int8"
    difference = np.abs(exact(layer(x)) - full).max()
    assert 0 < difference < 0.05 * np.abs(full).max()


KEPT = np.array([2, 5, 6, 11, 13])
VOCABULARY = 16


@pytest.fixture
def pruned() -> tuple[ours.PrunedEmbedding, Table]:
    table = random_table(1 + len(KEPT), 64, 8, 32)
    for part in table.parts:
        part[0] = mx.zeros_like(part[0])
    token_map = np.zeros(VOCABULARY, np.int32)
    token_map[KEPT] = np.arange(1, 1 + len(KEPT))
    layer = ours.PrunedEmbedding(*table.parts, mx.array(token_map), scale=8.0, softcap=4.0, **table.packing)
    return layer, table


def test_a_pruned_embedding_takes_original_ids(pruned: tuple[ours.PrunedEmbedding, Table]) -> None:
    layer, table = pruned
    got = layer(mx.array([[13, 2], [0, 11]]))
    wanted = 8.0 * table.dense()[np.array([[5, 1], [0, 4]])]
    assert_close(got, wanted, "float32")
    assert (np.array(got[1, 0]) == 0).all()


def test_a_pruned_head_gives_original_ids_and_never_a_pruned_one(
    pruned: tuple[ours.PrunedEmbedding, Table],
) -> None:
    layer, table = pruned
    h = random_array(2, 3, 64)
    h[0] = -mx.abs(h[0])
    truth = 4.0 * np.tanh(exact(h) @ table.dense()[1:].T / 4.0)
    assert_close(layer.logits(h), truth, "float32", 2e-5)
    np.testing.assert_array_equal(np.array(layer.argmax(h)[1]), KEPT[truth.argmax(-1)])
    values, ids = layer.topk(h, 5)
    np.testing.assert_array_equal(np.array(ids), KEPT[np.argsort(-truth, axis=-1)])
    whole = exact(layer.as_linear(h))
    np.testing.assert_allclose(whole[:, KEPT], truth, atol=1e-4)
    assert np.isneginf(np.delete(whole, KEPT, axis=1)).all()
    targets = mx.array([5, 0, 13])
    log_probs, sums = layer.logprob(h, targets)
    np.testing.assert_allclose(np.array(sums), np.log(np.exp(truth).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(
        np.array(log_probs), whole[np.arange(3), np.array(targets)] - np.array(sums), rtol=1e-4, atol=1e-5
    )
    assert raw(values).shape == (3, 5)


def test_a_token_map_that_does_not_fit_the_table_is_refused() -> None:
    table = random_table(4, 64)
    for ids, message in (
        ([0, 1, 2, 4], "need rows 0 to 3 in the token map, got 0 to 4"),
        ([0, 1, 2, -1], "got -1 to 2"),
        ([0, 1, 1, 3], "need a token id for every row but 0, got none for row 2"),
    ):
        with pytest.raises(SurgeryError, match=message):
            ours.PrunedEmbedding(*table.parts, mx.array(ids))


def test_the_package_imports_no_kernels_before_they_are_asked_for() -> None:
    import subprocess
    import sys

    program = (
        "import sys, gemma_surgery; "
        "print([n for n in sys.modules if n.startswith(('mlx', 'gemma_surgery.ops', 'gemma_surgery.nn'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
