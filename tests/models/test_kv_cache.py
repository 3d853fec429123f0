"""However a prompt is cut up, the cache shows every token the same past."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.models import CacheOptions, KVCache, load_model

LENGTH = 150  # more than two windows of 64


@pytest.fixture(scope="module", params=["tiny", "tiny_dense", "mobile"])
def model(request):
    return load_model(request.getfixturevalue(request.param), dtype=mx.float32)


@pytest.fixture(scope="module")
def tokens():
    return mx.array(np.random.default_rng(5).integers(107, 300, (1, LENGTH)).astype(np.int32))


@pytest.fixture(scope="module")
def one_pass(model, tokens):
    return np.asarray(model(tokens))


def finite(logits):
    return np.where(np.isfinite(logits), logits, 0)


def in_pieces(model, tokens, cache, size):
    pieces = [
        np.asarray(model(tokens[:, start : start + size], cache=cache))
        for start in range(0, tokens.shape[1], size)
    ]
    return np.concatenate(pieces, axis=1)


@pytest.mark.parametrize("size", [1, 2, 37, 63, 64, 65, 149])
def test_pieces_of_any_size_give_the_logits_of_one_pass(model, tokens, one_pass, size):
    logits = in_pieces(model, tokens, model.make_cache(), size)
    assert np.abs(finite(logits) - finite(one_pass)).max() <= 1e-5 * np.abs(finite(one_pass)).max()


def test_local_layers_hold_no_more_than_window_and_step(model, tokens):
    cache = model.make_cache(CacheOptions(slack=3))
    long = mx.concatenate([tokens] * 4, axis=1)
    in_pieces(model, long, cache, 5)
    for layer in cache:
        assert layer.offset == long.shape[1]
        assert layer.held == (layer.offset if layer.window is None else layer.held)
        if layer.window is not None:
            assert layer.state()["0"].shape[2] <= layer.window + 256 + 3


@pytest.mark.parametrize("count", [1, 7])
def test_tokens_taken_back_leave_no_trace(model, tokens, one_pass, count):
    cache = model.make_cache(CacheOptions(slack=count))
    in_pieces(model, tokens, cache, 50)
    for layer in cache:
        assert layer.can_trim(count)
        layer.trim(count)
    logits = np.asarray(model(tokens[:, -count:], cache=cache))
    expected = one_pass[:, -count:]
    assert np.abs(finite(logits) - finite(expected)).max() <= 1e-5 * np.abs(finite(expected)).max()


def test_taking_back_more_than_a_local_layer_holds_is_refused(model, tokens):
    cache = model.make_cache()
    for start in range(0, LENGTH, 10):
        model(tokens[:, start : start + 10], cache=cache)
    local = next(layer for layer in cache if layer.window is not None)
    # All tokens fit the first buffer, so make it forget what left the window.
    for _ in range(30):
        model(tokens[:, :10], cache=cache)
    assert not local.can_trim(local.held)
    with pytest.raises(SurgeryError, match="tokens to take back within a window of 64"):
        local.trim(local.held)
    assert all(layer.can_trim(200) for layer in cache if layer.window is None)


def test_restored_caches_go_on_as_the_originals(model, tokens, one_pass):
    cache = model.make_cache(CacheOptions(slack=2))
    model(tokens[:, :100], cache=cache)
    again = [KVCache.restored(layer.state(), layer.meta()) for layer in cache]
    logits = np.asarray(model(tokens[:, 100:], cache=again))
    direct = np.asarray(model(tokens[:, 100:], cache=cache))
    np.testing.assert_array_equal(logits, direct)


def test_a_damaged_state_is_refused(model, tokens):
    cache = model.make_cache()
    model(tokens, cache=cache)
    layer = cache[0]
    state, meta = layer.state(), layer.meta()
    with pytest.raises(SurgeryError, match="cannot restore"):
        KVCache.restored({"0": state["0"]}, meta)
    with pytest.raises(SurgeryError, match="cannot restore"):
        KVCache.restored({key: array[:, :, :9] for key, array in state.items()}, meta)
    with pytest.raises(SurgeryError, match="cannot restore"):
        KVCache.restored(state, {**meta, "offset": "many"})


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.02), (6, 0.1), (4, 0.6)])
def test_quantized_keys_and_values_stay_near_the_exact_ones(model, tokens, one_pass, bits, bound):
    """Bound: root mean square of the change, as a share of the logits' spread."""
    expected = finite(one_pass)
    for size in (LENGTH, 31, 1):
        cache = model.make_cache(CacheOptions(bits=bits, group_size=32))
        logits = finite(in_pieces(model, tokens, cache, size))
        assert all(layer.is_quantized for layer in cache)
        assert np.sqrt(np.mean((logits - expected) ** 2)) < bound * expected.std()


def test_quantization_sets_in_after_the_stated_number_of_tokens(model, tokens, one_pass):
    cache = model.make_cache(CacheOptions(bits=8, group_size=32, quantize_after=100))
    logits = in_pieces(model, tokens[:, :100], cache, 20)
    assert not any(layer.is_quantized for layer in cache)
    whole = finite(one_pass[:, :100])
    assert np.abs(finite(logits) - whole).max() < 1e-6 * np.abs(whole).max()
    dense_bytes = sum(layer.size_bytes for layer in cache)
    model(tokens[:, 100:101], cache=cache)
    assert all(layer.is_quantized for layer in cache)
    assert sum(layer.size_bytes for layer in cache) < dense_bytes / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CacheOptions(bits=8, group_size=64), "divides the head dimension 32, got 64\nhint: use 32"),
        (CacheOptions(bits=7, group_size=32), "need bits out of 2, 3, 4, 5, 6, 8, got 7"),
        (CacheOptions(slack=-1), "slack=-1"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(SurgeryError) as caught:
        model.make_cache(options)
    assert message in str(caught.value)
