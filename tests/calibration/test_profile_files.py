"""Profiles come back as they were measured, and a bad one is one clear error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from calibrating import profiled, samples_of
from safetensors.numpy import save_file

from gemma_surgery.calibration import measure
from gemma_surgery.calibration.profile import FINGERPRINT_KEY, pack_hessian, read_profile
from gemma_surgery.errors import SurgeryError

LINEAR = "language_model.model.layers.3.mlp.down_proj"
MLP = "language_model.model.layers.3.mlp."


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def one(**statistics: object) -> Path:
        path = tmp_path / "profile.safetensors"
        save_file(statistics, path, {FINGERPRINT_KEY: "mine", "tokens": "12"})
        return path

    return one


def packed(hessian: np.ndarray) -> dict[str, np.ndarray]:
    return dict(pack_hessian(LINEAR, hessian.astype(np.float32), 12))


def test_a_packed_hessian_has_its_diagonal_exactly_and_the_rest_within_the_stated_error(write) -> None:
    rng = np.random.default_rng(1)
    # Channels of very different size, two of them the same.
    inputs = rng.normal(0, 1, (400, 1100)) * 10.0 ** rng.uniform(-4, 4, 1100)
    inputs[:, 7] = inputs[:, 9]
    hessian = (inputs.T @ inputs / 400).astype(np.float32)
    got = read_profile(write(**packed(hessian)), "mine").hessian(LINEAR, 1100)
    assert got.dtype == np.float32 and np.array_equal(got, got.T)
    assert np.array_equal(np.diagonal(got), np.diagonal(hessian))
    root = np.sqrt(np.diagonal(hessian).astype(np.float64))
    error = np.abs(got.astype(np.float64) - hessian) / np.outer(root, root)
    assert error.max() < 1.6e-5


def test_only_the_upper_triangle_of_a_hessian_is_packed() -> None:
    inputs = np.random.default_rng(2).normal(size=(50, 20))
    hessian = inputs.T @ inputs
    lower = np.tril(np.full_like(hessian, np.nan), -1)
    for name, part in packed(np.triu(hessian) + lower).items():
        assert np.array_equal(part, packed(hessian)[name])


def test_a_dead_channel_stays_dead_in_a_packed_hessian(write) -> None:
    inputs = np.random.default_rng(3).normal(size=(50, 20))
    inputs[:, [0, 11, 19]] = 0
    got = read_profile(write(**packed(inputs.T @ inputs)), "mine").hessian(LINEAR, 20)
    for channel in (0, 11, 19):
        assert (got[channel] == 0).all() and (got[:, channel] == 0).all()
    assert np.isfinite(got).all() and (np.diagonal(got)[1:11] > 0).all()


def test_a_profile_knows_what_it_was_measured_on(write) -> None:
    profile = read_profile(write(x=np.ones(3, np.float32)), "mine")
    assert profile.num_tokens == 12 and len(profile.sha256) == 64
    assert not profile.has_hessian(LINEAR)


def test_a_profile_of_another_checkpoint_is_refused(write) -> None:
    with pytest.raises(SurgeryError, match="need a profile of checkpoint other, got one of mine") as caught:
        read_profile(write(x=np.ones(3, np.float32)), "other")
    assert caught.value.hint is not None


def test_a_file_without_a_fingerprint_is_refused(tmp_path: Path) -> None:
    save_file({"x": np.ones(3, np.float32)}, tmp_path / "p")
    with pytest.raises(SurgeryError, match="got one of nothing"):
        read_profile(tmp_path / "p", "mine")


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_truncated_profile_is_refused(write, kept: int) -> None:
    path = write(**{f"{MLP}mean_abs_activation": np.ones(512, np.float32)})
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    with pytest.raises(SurgeryError, match=r"profile\.safetensors"):
        read_profile(path, "mine")


def test_a_profile_truncated_after_it_was_opened_is_refused(write) -> None:
    path = write(**{f"{MLP}mean_abs_activation": np.ones(512, np.float32)})
    profile = read_profile(path, "mine")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(SurgeryError, match=r"need 2,048 bytes of `.*`, got 2,008 from"):
        profile.activation(MLP, 512)


def test_a_missing_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match="cannot read"):
        read_profile(tmp_path / "none", "mine")


ACTIVATION = f"{MLP}mean_abs_activation"
ATTACKS = {
    "missing": ({"x": np.ones(3, np.float32)}, "got nothing"),
    "wrong size": ({ACTIVATION: np.ones(511, np.float32)}, r"got F32 \[511\]"),
    "wrong rank": ({ACTIVATION: np.ones((1, 512), np.float32)}, r"got F32 \[1, 512\]"),
    "integers": ({ACTIVATION: np.ones(512, np.int16)}, r"got I16 \[512\]"),
    "not a number": ({ACTIVATION: np.full(512, np.nan, np.float32)}, "need finite values"),
    "infinite": ({ACTIVATION: np.full(512, np.inf, np.float32)}, "need finite values"),
    "negative": ({ACTIVATION: np.full(512, -0.5, np.float32)}, "need values of at least 0, got -0.5"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_wrong_statistic_is_one_clear_error(write, attack: str) -> None:
    statistics, message = ATTACKS[attack]
    with pytest.raises(SurgeryError, match=message) as caught:
        read_profile(write(**statistics), "mine").activation(MLP, 512)
    assert "\n" not in caught.value.message and "`profile.safetensors`" in caught.value.message


def test_wrong_hessians_are_clear_errors(write) -> None:
    parts = packed(np.eye(8))
    with pytest.raises(SurgeryError, match="need the Hessian of") as caught:
        read_profile(write(x=np.ones(1, np.float32)), "mine").hessian(LINEAR, 8)
    assert caught.value.hint == "profile with `--hessians`"
    with pytest.raises(SurgeryError, match="need 9 values"):
        read_profile(write(**parts), "mine").hessian(LINEAR, 9)
    dense = {**parts, f"{LINEAR}.hessian_correlation": np.full(28, np.nan, np.float32)}
    with pytest.raises(SurgeryError, match=r"need 28 values under .*, got F32 \[28\]"):
        read_profile(write(**dense), "mine").hessian(LINEAR, 8)
    del parts[f"{LINEAR}.hessian_correlation"]
    with pytest.raises(SurgeryError, match=r"need 28 values under .*, got nothing"):
        read_profile(write(**parts), "mine").hessian(LINEAR, 8)


def test_vectors_that_may_be_negative_are_read_as_they_are(write) -> None:
    means = np.linspace(-1, 1, 512, dtype=np.float32)
    path = write(**{f"{LINEAR}.input_mean": means})
    assert np.array_equal(read_profile(path, "mine").input_mean(LINEAR, 512), means)


def test_every_statistic_of_a_profile_is_in_the_order_of_layers(dense: Path, tmp_path: Path) -> None:
    path = tmp_path / "profile.safetensors"
    checkpoint = profiled(dense, samples_of(dense, 2), path, hessians=("*.3.mlp.down_proj",))
    profile = read_profile(path, checkpoint.fingerprint)
    layers = [name.split(".")[3] for name in profile.header.tensors if name.startswith("language_model")]
    assert layers == sorted(layers, key=int) and set(layers) == set(map(str, range(8)))
    assert [name for name in profile.header.tensors if "vision" in name] == []
    assert profile.has_hessian(LINEAR) and not profile.has_hessian(LINEAR.replace("3", "4"))
    assert profile.header.metadata.keys() == {FINGERPRINT_KEY, "data_sha256", "tokens", "samples"}
    assert (profile.header.metadata["samples"], profile.num_tokens) == ("2", 96 + 89)


def test_a_pattern_that_no_measured_layer_matches_is_refused(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(
        SurgeryError, match=r"\(`\*.mlp.down_proj`, `\*.self_attn.o_proj`\), got none by `\*.q_proj`"
    ):
        profiled(dense, samples_of(dense, 1), tmp_path / "p", hessians=("*.down_proj", "*.q_proj"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_samples_give_the_same_bytes(dense: Path, tmp_path: Path, monkeypatch) -> None:
    samples = samples_of(dense, 2)
    for name in "ab":
        profiled(dense, samples, tmp_path / name, hessians=("*.down_proj",))
        monkeypatch.setattr(measure, "SAVE_SECONDS", -1.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_hessian_that_does_not_say_of_how_many_inputs_it_is_counts_as_none(write) -> None:
    parts = packed(np.eye(8))
    assert read_profile(write(**parts), "mine").has_hessian(LINEAR)
    del parts[f"{LINEAR}.hessian_count"]
    assert not read_profile(write(**parts), "mine").has_hessian(LINEAR)
