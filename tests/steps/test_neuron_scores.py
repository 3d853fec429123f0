"""Which neurons go, by what a profile measured: against the definitions in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from calibrated import LAYERS, MadeUp, down_proj, made_up
from compressing import compress_steps, plan_steps, read_json
from independent import dequantize, read_all, value

from gemma_surgery.calibration import profile
from gemma_surgery.errors import SurgeryError

PRUNE = '[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\ncompensation = "none"\n'


@pytest.fixture(scope="module")
def measured() -> MadeUp:
    return made_up(hessians=False)


def kept_neurons(before: dict, after: dict, layer: int) -> list[int]:
    name = f"{LAYERS}{layer}.mlp.gate_proj.weight"
    places = {row.tobytes(): index for index, row in enumerate(before[name].rows)}
    return [places[row.tobytes()] for row in after[name].rows]


def highest(scores: np.ndarray, count: int) -> list[int]:
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def test_activation_keeps_those_above_the_threshold(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    three = f"{LAYERS}3.mlp.{profile.ACTIVATION}"
    statistics = {**measured.statistics, three: np.full(512, 9.0, np.float32)}
    path = MadeUp({}, statistics).write(tmp_path / "a.profile", tiny)
    text = f'{PRUNE}scores = "activation"\nthreshold = 8\nprofile = "{path}"'
    output = compress_steps(tiny, tmp_path, text)
    before, after = read_all(tiny), read_all(output)
    widths = read_json(output / "config.json")["text_config"]["per_layer_intermediate_sizes"]
    for layer in range(2, 8):
        scores = statistics[f"{LAYERS}{layer}.mlp.{profile.ACTIVATION}"]
        alive = int((scores >= 8).sum())
        assert widths[layer] == max(384, alive // 64 * 64)
        assert kept_neurons(before, after, layer) == highest(scores, widths[layer])
    assert widths[:4] == [512, 512, widths[2], 512]


@pytest.mark.parametrize("form", ["tiny", "tiny_dense"])
def test_wifv_is_fluctuation_times_the_squared_norm_of_the_column(
    form: str, tmp_path: Path, measured: MadeUp, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(form)
    path = measured.write(tmp_path / "a.profile", source)
    output = compress_steps(source, tmp_path, f'{PRUNE}scores = "wifv"\nprofile = "{path}"')
    before, after = read_all(source), read_all(output)
    for layer in range(2, 8):
        columns = value(before, f"{down_proj(layer)}.weight")
        scores = measured.fluctuation(layer) * np.square(columns).sum(axis=0)
        assert kept_neurons(before, after, layer) == highest(scores, 384)
        by_norms_alone = highest(np.square(columns).sum(axis=0), 384)
        assert kept_neurons(before, after, layer) != by_norms_alone


def test_with_a_profile_the_scores_are_wifv_and_without_one_weights(
    tiny: Path, tmp_path: Path, measured: MadeUp
) -> None:
    path = measured.write(tmp_path / "a.profile", tiny)
    auto = plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    wifv = plan_steps(tiny, tmp_path, f'{PRUNE}scores = "wifv"\nprofile = "{path}"')
    weights = plan_steps(tiny, tmp_path, PRUNE.replace('"none"', '"auto"'))
    assert auto.rankings == wifv.rankings != weights.rankings
    assert "weight norms" in weights.steps[0].notes[0]


def test_whole_groups_go_by_their_sum_and_stay_exact(tiny: Path, tmp_path: Path) -> None:
    measured = made_up()
    path = measured.write(tmp_path / "a.profile", tiny)
    text = f'[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\ngranularity = "group"\nprofile = "{path}"'
    plan = plan_steps(tiny, tmp_path, text)
    assert plan.steps[0].lossless
    before, after = read_all(tiny), read_all(compress_steps(tiny, tmp_path, text))
    for layer in range(2, 8):
        columns = dequantize(before, f"{down_proj(layer)}.weight")
        scores = (measured.fluctuation(layer) * np.square(columns).sum(axis=0)).reshape(8, 64).sum(axis=1)
        kept = (np.array(highest(scores, 6))[:, None] * 64 + np.arange(64)).reshape(-1)
        assert kept_neurons(before, after, layer) == kept.tolist()
        np.testing.assert_array_equal(dequantize(after, f"{down_proj(layer)}.weight"), columns[:, kept])


def test_another_profile_gives_another_plan(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    path = tmp_path / "a.profile"
    hashes = []
    for factor in (1.0, 2.0, 1.0):
        name = f"{down_proj(7)}.{profile.FLUCTUATION}"
        changed = {**measured.statistics, name: measured.statistics[name] * np.float32(factor)}
        MadeUp({}, changed).write(path, tiny)
        hashes.append(plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"').sha256)
    assert hashes[0] == hashes[2] != hashes[1]


def test_widths_can_be_given_layer_by_layer(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    widths = [512, 448, 512, 64, 256, 512, 384, 128]
    path = measured.write(tmp_path / "a.profile", tiny)
    text = f'[[steps]]\nstep = "prune_neurons"\nprotect_first = 0\nwidths = {widths}\n'
    for scores in ("weights", "wifv", "activation"):
        output = compress_steps(tiny, tmp_path, f'{text}scores = "{scores}"\nprofile = "{path}"')
        config = read_json(output / "config.json")["text_config"]
        assert config["per_layer_intermediate_sizes"] == widths
        assert [read_all(output)[f"{LAYERS}{i}.mlp.up_proj.weight"].shape[0] for i in range(8)] == widths


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("widths = [512]", "need 8 `widths`, one per decoder layer, got 1"),
        (f"widths = {[512] * 7 + [500]}", "need a multiple of 64 up to 512, got 500"),
        (f"widths = {[512] * 7 + [576]}", "need a multiple of 64 up to 512, got 576"),
        (f"widths = {[512] * 7 + [0]}", "need a multiple of 64 up to 512, got 0"),
        (
            f"widths = {[64] * 8}\nprotected_layers = [3]",
            "need layer 3 whole, which is protected, got a width of 64",
        ),
    ],
)
def test_widths_that_do_not_fit_are_refused(
    tiny: Path, tmp_path: Path, parameters: str, message: str
) -> None:
    with pytest.raises(SurgeryError, match=message):
        plan_steps(tiny, tmp_path, f'[[steps]]\nstep = "prune_neurons"\nprotect_first = 0\n{parameters}')


REFUSED = {
    "of another checkpoint": (lambda s: s, "need a profile of checkpoint 000000000000"),
    "without the statistic": (
        lambda s: {n: v for n, v in s.items() if "fluctuation" not in n},
        "need 512 values under `language_model.model.layers.2.mlp.down_proj.input_fluctuation`, got nothing",
    ),
    "of another width": (
        lambda s: {n: v[:100] if "fluctuation" in n else v for n, v in s.items()},
        "need 512 values under `language_model.model.layers.2.mlp.down_proj.input_fluctuation`, got F32 [1",
    ),
    "that is not finite": (
        lambda s: {n: v * np.float32(np.nan) if "fluctuation" in n else v for n, v in s.items()},
        "need finite values",
    ),
    "below zero": (
        lambda s: {n: -v if "fluctuation" in n else v for n, v in s.items()},
        "need values of at least 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_profile_that_does_not_fit_is_refused(
    tiny: Path, tmp_path: Path, measured: MadeUp, case: str
) -> None:
    edit, message = REFUSED[case]
    path = MadeUp({}, edit(measured.statistics)).write(
        tmp_path / "a.profile", tiny, "0" * 64 if case == "of another checkpoint" else None
    )
    with pytest.raises(SurgeryError) as caught:
        plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    if case == "of another checkpoint":
        assert "need a profile of checkpoint" in str(caught.value)
    else:
        assert message in str(caught.value)


@pytest.mark.parametrize(
    "parameter",
    ['scores = "activation"', 'scores = "wifv"', 'compensation = "bias"', 'compensation = "columns"'],
)
def test_what_needs_a_profile_says_so(tiny: Path, tmp_path: Path, parameter: str) -> None:
    with pytest.raises(SurgeryError, match=f"need `profile` for `{parameter}`, got none"):
        plan_steps(tiny, tmp_path, f'[[steps]]\nstep = "prune_neurons"\nprotect_first = 2\n{parameter}')


def with_shares(measured: MadeUp) -> MadeUp:
    """Layers whose neurons add unlike amounts: from all alike in layer 0 to a few that do everything in 7."""
    rng = np.random.default_rng(1)
    shares = {}
    for layer in range(8):
        values = rng.permutation(np.arange(1, 513.0) ** layer)
        name = f"{down_proj(layer)}.{profile.OUTPUT_SHARE}"
        shares[name] = (values / values.sum()).astype(np.float32)
    return MadeUp(measured.inputs, {**measured.statistics, **shares})


def test_neurons_go_wherever_they_add_least(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    shared = with_shares(measured)
    path = shared.write(tmp_path / "a.profile", tiny)
    output = compress_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    widths = read_json(output / "config.json")["text_config"]["per_layer_intermediate_sizes"]
    assert sum(512 - width for width in widths) == 6 * 128
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == 512 and widths[7] < 384
    lost = [np.sort(shared.statistics[f"{down_proj(i)}.{profile.OUTPUT_SHARE}"]) for i in range(8)]
    sums = [np.concatenate([[0], np.cumsum(values.astype(float))]) for values in lost]
    total = sum(sums[layer][512 - width] for layer, width in enumerate(widths))
    for narrower in range(8):
        for wider in range(8):
            other = list(widths)
            other[narrower] -= 64
            other[wider] += 64
            if narrower != wider and min(other) >= 128 and max(other) <= 512:
                assert total <= sum(sums[layer][512 - width] for layer, width in enumerate(other)) + 1e-9


def test_protected_layers_stay_whole_when_layers_share_out(tiny: Path, tmp_path, measured: MadeUp) -> None:
    path = with_shares(measured).write(tmp_path / "a.profile", tiny)
    text = f'{PRUNE}protected_layers = [6, 7]\nprofile = "{path}"'
    widths = plan_steps(tiny, tmp_path, text).config["text_config"]["per_layer_intermediate_sizes"]
    assert widths[6:] == [512, 512]
    assert sum(512 - width for width in widths) == 4 * 128


def test_every_layer_is_cut_alike_on_request_and_by_older_profiles(tiny: Path, tmp_path, measured) -> None:
    older, newer = tmp_path / "older.profile", tmp_path / "newer.profile"
    measured.write(older, tiny)
    with_shares(measured).write(newer, tiny)
    alike = [512, 512, *[384] * 6]
    for text in (f'profile = "{older}"', f'structure = "layers"\nprofile = "{newer}"'):
        plan = plan_steps(tiny, tmp_path, PRUNE + text)
        assert plan.config["text_config"]["per_layer_intermediate_sizes"] == alike
    with pytest.raises(SurgeryError, match=r"need 512 values under .*output_share"):
        plan_steps(tiny, tmp_path, f'{PRUNE}structure = "global"\nprofile = "{older}"')
    with pytest.raises(SurgeryError, match='for `structure = "global"`'):
        plan_steps(tiny, tmp_path, f'{PRUNE}structure = "global"\nscores = "weights"\nprofile = "{newer}"')


def test_more_than_can_go_is_refused(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    path = with_shares(measured).write(tmp_path / "a.profile", tiny)
    text = f'{PRUNE}max_ratio = 0.9\nprofile = "{path}"'.replace("protect_first = 2", "protect_first = 0")
    with pytest.raises(SurgeryError, match="need 3,584 neurons to remove, got too few"):
        plan_steps(tiny, tmp_path, text)


def test_of_choices_that_cost_nothing_the_one_that_removes_least_is_taken(tiny: Path, tmp_path) -> None:
    dead = with_shares(made_up(hessians=False))
    for layer in range(8):
        dead.statistics[f"{down_proj(layer)}.{profile.OUTPUT_SHARE}"][:300] = 0
    path = dead.write(tmp_path / "a.profile", tiny)
    plan = plan_steps(tiny, tmp_path, f'{PRUNE}profile = "{path}"')
    widths = plan.config["text_config"]["per_layer_intermediate_sizes"]
    assert sum(512 - width for width in widths) == 6 * 128


def test_a_second_pruning_by_scores_is_refused_with_and_without_a_profile(tiny: Path, tmp_path) -> None:
    path = with_shares(made_up(hessians=False)).write(tmp_path / "a.profile", tiny)
    for which in (f'profile = "{path}"\n', ""):
        with pytest.raises(SurgeryError, match="not pruned by scores before"):
            plan_steps(tiny, tmp_path, 2 * (PRUNE + which))


def test_layers_share_out_by_whole_units(tiny: Path, tmp_path, measured: MadeUp) -> None:
    path = with_shares(measured).write(tmp_path / "a.profile", tiny)
    coarse = f'{PRUNE}alignment = 128\nprofile = "{path}"'
    widths = plan_steps(tiny, tmp_path, coarse).config["text_config"]["per_layer_intermediate_sizes"]
    assert sum(512 - width for width in widths) == 6 * 128
    assert all(width % 128 == 0 for width in widths)
