"""The ops as parts of MLX graphs: strides, shapes, streams, `compile`, `vmap`, gradients."""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlx.core as mx
import numpy as np
import pytest
from ops_oracle import assert_close, exact, random_array, random_table, raw

from gemma_surgery import ops

TABLE = random_table(130, 128)


def linear(x: mx.array) -> mx.array:
    return ops.quantized_linear(x, *TABLE.parts)


def logits(x: mx.array) -> mx.array:
    return ops.tied_logits(x, *TABLE.parts, 5.0)


def topk(x: mx.array) -> mx.array:
    return ops.tied_topk(x, *TABLE.parts, 4)[0]


def argmax(x: mx.array) -> mx.array:
    return ops.tied_argmax(x, *TABLE.parts)[1]


def logprob(x: mx.array) -> mx.array:
    targets = mx.minimum(mx.abs(x).sum(axis=-1), 129.0).astype(mx.int32)
    return ops.tied_logprob(x, targets, *TABLE.parts)[0]


def dense_linear(x: mx.array) -> mx.array:
    return ops.linear(x, mx.ones((9, 128)), mx.ones(9))


def norm(x: mx.array) -> mx.array:
    return ops.layer_norm(ops.rms_norm(x, None, 1e-6), mx.ones(128), mx.ones(128), 1e-6)


def gelu(x: mx.array) -> mx.array:
    return ops.gated_gelu(x, ops.add_rms_norm(x, ops.gelu_tanh(x), None, 1e-6))


ROW_OPS = [linear, logits, topk, argmax, logprob, dense_linear, norm, gelu]
RowOp = Callable[[mx.array], mx.array]


def laid_out(x: mx.array) -> dict[str, mx.array]:
    """The rows of `[6, 128]` in other places of memory."""
    wide = mx.concatenate([x, x], axis=1)
    tall = mx.repeat(x, 3, axis=0)
    shifted = mx.concatenate([mx.zeros((1,)), x.flatten()])[1:].reshape(6, 128)
    return {
        "transposed": mx.contiguous(x.T).T,
        "left half of wider rows": wide[:, :128],
        "right half of wider rows": wide[:, 128:],
        "every third row": tall[::3],
        "backwards": mx.contiguous(x[::-1])[::-1],
        "not at the start of a vector": shifted,
        "every second column": mx.stack([x, x], axis=-1)[..., 0],
    }


@pytest.mark.parametrize("op", ROW_OPS)
@pytest.mark.parametrize("layout", laid_out(mx.zeros((6, 128))))
def test_strides_do_not_change_results(op: RowOp, layout: str) -> None:
    x = random_array(1, 6, 128)
    there = laid_out(x)[layout]
    mx.eval(there)
    np.testing.assert_array_equal(raw(there), raw(x))
    np.testing.assert_array_equal(raw(op(there)), raw(op(x)))


@pytest.mark.parametrize("op", ROW_OPS)
def test_broadcast_rows_are_read_as_such(op: RowOp) -> None:
    x = random_array(1, 128)
    many = mx.broadcast_to(x, (2, 3, 128))
    np.testing.assert_array_equal(raw(op(many)), raw(op(mx.contiguous(many))))


@pytest.mark.parametrize("op", ROW_OPS)
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (1, 6, 1), (3, 1, 2, 1)])
def test_leading_axes_are_kept(op: RowOp, shape: tuple[int, ...]) -> None:
    x = random_array(1, *shape, 128)
    out, flat = op(x), op(x.reshape(-1, 128))
    assert out.shape[: len(shape)] == shape
    assert raw(out).tobytes() == raw(flat).tobytes()


@pytest.mark.parametrize("op", ROW_OPS)
@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_no_rows_give_no_rows(op: RowOp, shape: tuple[int, ...]) -> None:
    out = op(mx.zeros((*shape, 128)))
    mx.eval(out)
    assert out.shape[: len(shape)] == shape and out.size == 0


def test_no_ids_give_no_embeddings() -> None:
    out = ops.gather_embed(mx.zeros((2, 0), mx.int32), None, *TABLE.parts)
    mx.eval(out)
    assert out.shape == (2, 0, 128)


def test_an_empty_table_gives_empty_logits() -> None:
    weight, scales, biases = (part[:0] for part in TABLE.parts)
    out = ops.tied_logits(mx.zeros((3, 128)), weight, scales, biases)
    mx.eval(out)
    assert out.shape == (3, 0)


@pytest.mark.parametrize("op", ROW_OPS)
def test_ops_compile(op: RowOp) -> None:
    def doubled(x: mx.array) -> mx.array:
        return op(x * 2.0) + 1

    compiled = mx.compile(doubled)
    for seed in (1, 2):
        x = random_array(seed, 6, 128)
        np.testing.assert_array_equal(raw(compiled(x)), raw(doubled(x)))


@pytest.mark.parametrize("op", ROW_OPS)
def test_ops_compile_without_shapes(op: RowOp) -> None:
    compiled = mx.compile(op, shapeless=True)
    for tokens in (1, 5, 2):
        x = random_array(tokens, tokens, 128)
        out = compiled(x)
        assert out.shape == op(x).shape
        np.testing.assert_array_equal(raw(out), raw(op(x)))


def test_equal_calls_are_computed_once_and_different_ones_are_not() -> None:
    def both(x: mx.array) -> tuple[mx.array, ...]:
        table = TABLE.parts
        return (
            ops.tied_logits(x, *table),
            ops.tied_logits(x, *table),
            ops.tied_logits(x, *table, 1.0),
            ops.tied_topk(x, *table, 2)[0],
            ops.tied_topk(x, *table, 3)[0],
        )

    x = random_array(1, 2, 128)
    for got, wanted in zip(mx.compile(both)(x), both(x), strict=True):
        np.testing.assert_array_equal(raw(got), raw(wanted))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("op", ROW_OPS)
def test_ops_map_over_any_axis(op: RowOp, axis: int) -> None:
    shape = [2, 3, 128]
    shape.insert(axis % 4, 4)
    x = random_array(1, *shape)
    got = mx.vmap(op, axis)(x)
    wanted = op(mx.moveaxis(x, axis, 0))
    np.testing.assert_array_equal(raw(got), raw(wanted))


def test_ids_and_targets_map_too() -> None:
    ids = mx.array([[1, 2, 3], [4, 5, 69]])
    embedded = mx.vmap(lambda i: ops.gather_embed(i, None, *TABLE.parts), 1)(ids)
    np.testing.assert_array_equal(raw(embedded), raw(ops.gather_embed(ids.T, None, *TABLE.parts)))
    h = random_array(1, 3, 128)
    for axes, states in (((None, 1), mx.broadcast_to(h[:, None], (3, 2, 128))), ((0, None), None)):
        mapped = mx.vmap(lambda x, t: ops.tied_logprob(x, t, *TABLE.parts), axes)
        if states is not None:
            got = mapped(h[:2], ids)
            wanted = ops.tied_logprob(mx.broadcast_to(h[:2], (3, 2, 128)), ids.T, *TABLE.parts)
        else:
            got = mapped(mx.stack([h, h]), ids[0])
            wanted = ops.tied_logprob(mx.stack([h, h]), mx.stack([ids[0], ids[0]]), *TABLE.parts)
        for part, whole in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(raw(part), raw(whole))


def test_matrices_do_not_map() -> None:
    stacked = [mx.stack([part, part]) for part in TABLE.parts]
    with pytest.raises(ValueError, match=r"\[tied_logits\] need one matrix for all under vmap"):
        mx.vmap(lambda *parts: ops.tied_logits(mx.zeros((1, 128)), *parts))(*stacked)


def test_other_streams_and_devices_give_the_same() -> None:
    x = random_array(1, 6, 128)
    wanted = raw(linear(x))
    for stream in (mx.cpu, mx.Device(mx.cpu), mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)):
        got = ops.quantized_linear(x, *TABLE.parts, stream=stream)
        np.testing.assert_array_equal(raw(got), wanted)
        np.testing.assert_array_equal(raw(ops.gelu_tanh(x, stream=stream)), raw(ops.gelu_tanh(x)))
    with mx.stream(mx.new_stream(mx.cpu)):
        np.testing.assert_array_equal(raw(linear(x)), wanted)


def test_streams_wait_for_each_other() -> None:
    one, two = mx.new_stream(mx.cpu), mx.new_stream(mx.cpu)
    square = random_table(128, 128)
    x = y = random_array(1, 3, 128)
    for step in range(20):
        y = ops.quantized_linear(y, *square.parts, stream=one if step % 2 else two)
        x = ops.quantized_linear(x, *square.parts)
    np.testing.assert_array_equal(raw(x), raw(y))


def test_threads_may_evaluate_at_the_same_time() -> None:
    x = random_array(1, 40, 128)
    wanted = raw(linear(x))
    same = []

    def work() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            same.extend(bool((raw(linear(x)) == wanted).all()) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(same) == 200 and all(same)


def test_nothing_runs_before_it_is_asked_for() -> None:
    infinite = mx.full((3, 64), mx.inf)
    assert ops.requantize(infinite, target=(64, 4))[0].shape == (3, 8)
    mx.eval(linear(random_array(1, 1, 128)))


def test_gradients_of_products_are_those_of_the_dense_matrix() -> None:
    x, bias, dense = (
        random_array(1, 2, 3, 128),
        random_array(2, 130),
        mx.array(TABLE.dense().astype(np.float32)),
    )

    def ours(x: mx.array, bias: mx.array) -> mx.array:
        return ops.quantized_linear(x, *TABLE.parts, bias).square().sum()

    def plain(x: mx.array, bias: mx.array) -> mx.array:
        return (x @ dense.T + bias).square().sum()

    got, wanted = (mx.grad(f, (0, 1))(x, bias) for f in (ours, plain))
    for part, truth in zip(got, wanted, strict=True):
        assert_close(part, exact(truth), "float32")
    got, wanted = (
        mx.grad(lambda x, w, b: f(x, w, b).square().sum(), (0, 1, 2))(x, dense, bias)  # noqa: B023
        for f in (ops.linear, ops.plain.linear)
    )
    for part, truth in zip(got, wanted, strict=True):
        assert_close(part, exact(truth), "float32")


def test_what_has_no_gradient_says_so() -> None:
    with pytest.raises(ValueError, match=r"\[quantized_linear\] need gradients with respect to x or bias"):
        mx.grad(lambda s: ops.quantized_linear(mx.ones((1, 128)), TABLE.weight, s, TABLE.biases).sum())(
            TABLE.scales
        )
    with pytest.raises(ValueError, match="Not implemented for TiedLogits"):
        mx.grad(lambda h: logits(h).sum())(mx.ones((1, 128)))
