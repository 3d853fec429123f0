"""What makes good for removed neurons and for rounding: against NumPy's least squares, and in the engine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from calibrated import ENOUGH, LAYERS, NUM_LAYERS, MadeUp, as_float32, down_proj, made_up
from compressing import compress_steps, folder_hashes, plan_steps, read_json
from independent import dequantize, read_all, total_bytes, value

from gemma_surgery.calibration import profile
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.models import load_model
from gemma_surgery.surgery.executor import execute
from gemma_surgery.verification import check_structure, verify

PRUNE = '[[steps]]\nstep = "prune_neurons"\nprotect_first = 6\n'
QUANTIZE = '[[steps]]\nstep = "quantize"\n'


@pytest.fixture(scope="module")
def measured() -> MadeUp:
    return made_up()


def with_profile(measured: MadeUp, source: Path, tmp_path: Path, text: str) -> str:
    path = measured.write(tmp_path / "a.profile", source)
    return f'profile = "{path}"\n{text}'


def kept_neurons(before: dict, after: dict, layer: int) -> np.ndarray:
    name = f"{LAYERS}{layer}.mlp.gate_proj.weight"
    places = {row.tobytes(): index for index, row in enumerate(before[name].rows)}
    return np.array([places[row.tobytes()] for row in after[name].rows])


def output_error(whole: np.ndarray, kept: np.ndarray, cut: np.ndarray, inputs: np.ndarray) -> float:
    x = inputs.reshape(-1, inputs.shape[-1])
    return float(np.square(x @ whole.T - x[:, kept] @ cut.T).sum() / np.square(x @ whole.T).sum())


# ---- a bias for what is gone ----


def test_the_bias_is_the_mean_of_what_was_removed(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    text = with_profile(measured, tiny, tmp_path, f'{PRUNE}compensation = "bias"')
    before, after = read_all(tiny), read_all(compress_steps(tiny, tmp_path, text))
    assert not [name for name in after if name.endswith("5.mlp.down_proj.bias")]
    for layer in (6, 7):
        gone = np.setdiff1d(np.arange(512), kept_neurons(before, after, layer))
        columns = dequantize(before, f"{down_proj(layer)}.weight")
        wanted = columns[:, gone] @ measured.mean(layer)[gone]
        bias = after[f"{down_proj(layer)}.bias"]
        assert bias.dtype == "BF16"
        np.testing.assert_allclose(bias.values, wanted, rtol=2**-8, atol=1e-6)


def test_constant_neurons_are_replaced_exactly_in_the_engine(tiny_dense: Path, tmp_path: Path) -> None:
    source = as_float32(tiny_dense, tmp_path / "source", lambda tensors: None)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6, 40, 512)).astype(np.float32)
    constant = np.sort(rng.choice(512, 128, replace=False))
    x[:, :, constant] = rng.normal(size=128)
    measured = made_up(hessians=False)
    for layer in (6, 7):
        measured.inputs[layer] = x
        measured.statistics[f"{down_proj(layer)}.{profile.INPUT_MEAN}"] = measured.mean(layer).astype("f4")
        measured.statistics[f"{down_proj(layer)}.{profile.FLUCTUATION}"] = x.var(axis=(0, 1)).astype("f4")
    text = with_profile(measured, source, tmp_path, f'{PRUNE}compensation = "bias"')
    output = compress_steps(source, tmp_path, text)
    kept = np.setdiff1d(np.arange(512), constant)
    whole, cut = load_model(source, dtype=mx.float32), load_model(output, dtype=mx.float32)
    for layer in (6, 7):
        old, new = (model.decoder.layers[layer].mlp.down_proj for model in (whole, cut))
        wanted = np.asarray(old(mx.array(x)))
        given = mx.array(x[:, :, kept])
        assert np.abs(np.asarray(new(given)) - wanted).max() < 1e-5
        # The other neurons alone are far off: the bias is what makes it exact.
        assert np.abs(np.asarray(new.matrix.product(given)) - wanted).max() > 0.1


def test_a_model_with_biases_is_sound_and_its_config_says_which_layers(
    tiny: Path, tmp_path: Path, measured: MadeUp
) -> None:
    drop = '[[steps]]\nstep = "drop_layers"\nlast = 1\n'
    text = with_profile(measured, tiny, tmp_path, f'{PRUNE}compensation = "bias"\n{drop}')
    plan = plan_steps(tiny, tmp_path, text)
    output = compress_steps(tiny, tmp_path, text)
    flags = read_json(output / "config.json")["text_config"]["per_layer_down_proj_bias"]
    assert flags == [False] * 6 + [True]
    assert check_structure(open_checkpoint(output)).problems == []
    assert plan.steps[0].added_bytes == 2 * 128 * 2
    assert plan.output_bytes == total_bytes(read_all(output))
    ids = mx.array([[2, 300, 301, 302]])
    assert np.isfinite(np.asarray(load_model(output)(ids).astype(mx.float32))).any()


def test_a_bias_that_the_config_does_not_name_is_a_problem(
    tiny: Path, tmp_path: Path, measured: MadeUp
) -> None:
    text = with_profile(measured, tiny, tmp_path, f'{PRUNE}compensation = "bias"')
    output = compress_steps(tiny, tmp_path, text)
    config = read_json(output / "config.json")
    for flags, word in (
        ([False] * 8, "not part of the model"),
        ([True] * 8, "is missing"),
        ([1], "need true"),
    ):
        config["text_config"]["per_layer_down_proj_bias"] = flags
        (output / "config.json").write_text(json.dumps(config), "utf-8")
        try:
            problems = check_structure(open_checkpoint(output)).problems
        except SurgeryError as error:
            problems = [str(error)]
        assert any(word in problem for problem in problems)


def test_a_second_bias_over_a_stored_one_is_refused(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    text = with_profile(measured, tiny, tmp_path, f'{PRUNE}compensation = "bias"')
    output = compress_steps(tiny, tmp_path, text)
    narrow = made_up(hessians=False)
    narrow.statistics = {n: v[:384] if ".mlp." in n else v for n, v in narrow.statistics.items()}
    again = with_profile(narrow, output, tmp_path, f'{PRUNE}compensation = "bias"')
    with pytest.raises(SurgeryError, match="need a down_proj without a bias"):
        plan_steps(output, tmp_path, again)


# ---- the kept columns take over ----


def test_kept_columns_are_the_least_squares_fit(tiny_dense: Path, tmp_path: Path, measured: MadeUp) -> None:
    source = as_float32(tiny_dense, tmp_path / "source", lambda tensors: None)
    output = compress_steps(source, tmp_path, with_profile(measured, source, tmp_path, PRUNE))
    stored = profile.read_profile(tmp_path / "a.profile", open_checkpoint(source).fingerprint)
    before, after = read_all(source), read_all(output)
    for layer in (6, 7):
        kept = kept_neurons(before, after, layer)
        whole = value(before, f"{down_proj(layer)}.weight")
        hessian = stored.hessian(down_proj(layer), 512).astype(np.float64)
        inner = hessian[np.ix_(kept, kept)]
        inner = inner + 0.01 * np.diag(inner).mean() * np.eye(len(kept))
        ridge = (
            whole[:, kept]
            + np.linalg.solve(
                inner, (whole @ hessian[:, kept] - whole[:, kept] @ hessian[np.ix_(kept, kept)]).T
            ).T
        )
        cut = value(after, f"{down_proj(layer)}.weight")
        assert cut.shape == (128, 384)
        assert np.abs(cut - ridge).max() < 1e-4 * np.abs(ridge).max()
        x = measured.inputs[layer]
        assert output_error(whole, kept, cut, x) < 0.2 * output_error(whole, kept, whole[:, kept], x)


def test_few_tokens_move_the_fit_less(tiny_dense: Path, tmp_path: Path, measured: MadeUp) -> None:
    source = as_float32(tiny_dense, tmp_path / "source", lambda tensors: None)
    fingerprint = open_checkpoint(source).fingerprint
    before, kept, weights = read_all(source), {}, {}
    for tokens in (80 * 512, 8 * 512, 512):
        counts = {f"{down_proj(layer)}.{profile.COUNT}": np.float32([tokens]) for layer in range(NUM_LAYERS)}
        MadeUp({}, {**measured.statistics, **counts}).write(tmp_path / "a.profile", source)
        text = f'profile = "{tmp_path / "a.profile"}"\n{PRUNE}'
        after = read_all(compress_steps(source, tmp_path, text))
        kept[tokens] = kept_neurons(before, after, 7)
        weights[tokens] = value(after, f"{down_proj(7)}.weight")
    assert np.array_equal(weights[80 * 512], weights[8 * 512])
    # An eighth of the tokens that are enough: an eighth of the correlations.
    stored = profile.read_profile(tmp_path / "a.profile", fingerprint)
    hessian = stored.hessian(down_proj(7), 512).astype(np.float64)
    shrunk = hessian / 8 + 7 / 8 * np.diag(np.diagonal(hessian))
    whole, columns = value(before, f"{down_proj(7)}.weight"), kept[512]
    inner = shrunk[np.ix_(columns, columns)]
    ridge = 0.01 * np.diagonal(inner).mean() * np.eye(len(columns))
    moved = whole @ shrunk[:, columns] - whole[:, columns] @ inner
    wanted = whole[:, columns] + np.linalg.solve(inner + ridge, moved.T).T
    assert np.abs(weights[512] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(weights[512] - weights[8 * 512]).max() > 0.01 * np.abs(wanted).max()


def test_fitted_and_compensated_columns_beat_rounded_ones(
    tiny: Path, tmp_path: Path, measured: MadeUp
) -> None:
    errors: dict[str, list[float]] = {}
    before = read_all(tiny)
    for compensation in ("none", "columns"):
        text = with_profile(measured, tiny, tmp_path, f'{PRUNE}compensation = "{compensation}"')
        after = read_all(compress_steps(tiny, tmp_path, text))
        errors[compensation] = [
            output_error(
                dequantize(before, f"{down_proj(layer)}.weight"),
                kept_neurons(before, after, layer),
                dequantize(after, f"{down_proj(layer)}.weight"),
                measured.inputs[layer],
            )
            for layer in (6, 7)
        ]
    assert max(errors["columns"]) < 0.2 * min(errors["none"])


def test_the_hessian_of_other_inputs_does_not_help(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    shuffled = MadeUp({}, dict(measured.statistics))
    other = made_up(seed=99)
    for layer in (6, 7):
        for name in (profile.DIAGONAL, profile.CORRELATION):
            key = f"{down_proj(layer)}.{name}"
            shuffled.statistics[key] = other.statistics[key]
    before, errors = read_all(tiny), []
    for one in (measured, shuffled):
        after = read_all(compress_steps(tiny, tmp_path, with_profile(one, tiny, tmp_path, PRUNE)))
        whole, cut = (dequantize(tensors, f"{down_proj(7)}.weight") for tensors in (before, after))
        errors.append(output_error(whole, kept_neurons(before, after, 7), cut, measured.inputs[7]))
    assert errors[0] < 0.2 * errors[1]


def test_columns_are_compensated_by_default_where_there_are_hessians(
    tiny: Path, tmp_path: Path, measured: MadeUp
) -> None:
    plan = plan_steps(tiny, tmp_path, with_profile(measured, tiny, tmp_path, PRUNE))
    methods = {planned.tensor.name: planned.tensor.method for planned in plan.tensors}
    assert [layer for layer in range(8) if methods[f"{down_proj(layer)}.weight"] == "solve"] == [6, 7]
    assert not plan.steps[0].lossless
    without = made_up(hessians=False)
    plan = plan_steps(tiny, tmp_path, with_profile(without, tiny, tmp_path, PRUNE))
    assert "solve" not in {planned.tensor.method for planned in plan.tensors}


def test_a_layer_that_loses_nothing_is_copied(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    text = f'{PRUNE}scores = "activation"\nthreshold = 0'
    plan = plan_steps(tiny, tmp_path, with_profile(measured, tiny, tmp_path, text))
    assert {planned.tensor.method for planned in plan.tensors} == {"copy"}


def test_other_formats_are_fitted_and_rounded(tiny_dense: Path, tmp_path: Path, measured: MadeUp) -> None:
    text = f'{QUANTIZE}mode = "mxfp4"\n{PRUNE}'
    output = compress_steps(tiny_dense, tmp_path, with_profile(measured, tiny_dense, tmp_path, text))
    assert verify(output, open_checkpoint(tiny_dense)).ok
    assert read_all(output)[f"{down_proj(7)}.scales"].dtype == "U8"


# ---- rounding ----


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_compensated_rounding_beats_rounding(
    tiny_dense: Path, tmp_path: Path, measured: MadeUp, bits: int
) -> None:
    before, errors = read_all(tiny_dense), {}
    for method in ("round", "compensated"):
        text = f'{QUANTIZE}bits = {bits}\nmethod = "{method}"'
        after = read_all(
            compress_steps(tiny_dense, tmp_path, with_profile(measured, tiny_dense, tmp_path, text))
        )
        errors[method] = [
            output_error(
                value(before, f"{down_proj(layer)}.weight"),
                np.arange(512),
                dequantize(after, f"{down_proj(layer)}.weight", bits),
                measured.inputs[layer],
            )
            for layer in range(8)
        ]
    for rounded, compensated in zip(errors["round"], errors["compensated"], strict=True):
        assert compensated < 0.5 * rounded


def test_columns_of_padding_stay_zero_whatever_a_profile_knows(
    tiny_dense: Path, tmp_path: Path, measured: MadeUp
) -> None:
    fc2 = "vision_tower.vision_model.encoder.layers.0.mlp.fc2"
    inputs = np.random.default_rng(4).normal(size=(600, 272)).astype(np.float32)
    hessian = inputs.T @ inputs / len(inputs)
    known = MadeUp({}, {**measured.statistics, **dict(profile.pack_hessian(fc2, hessian, ENOUGH))})
    pad = '[[steps]]\nstep = "pad_vision_mlp"\n'
    text = with_profile(known, tiny_dense, tmp_path, f"{pad}{QUANTIZE}")
    after = read_all(compress_steps(tiny_dense, tmp_path, text))
    stored = dequantize(after, f"{fc2}.weight")
    assert stored.shape == (64, 320)
    assert not stored[:, 272:].any()


def test_a_later_step_says_how_a_fitted_matrix_is_rounded(
    tiny_dense: Path, tmp_path: Path, measured: MadeUp
) -> None:
    for quantize, wanted in ((QUANTIZE, True), (f'{QUANTIZE}method = "round"', False)):
        text = with_profile(measured, tiny_dense, tmp_path, f"{PRUNE}{quantize}")
        plan = plan_steps(tiny_dense, tmp_path, text)
        solves = {p.tensor.name: p.tensor.solve for p in plan.tensors if p.tensor.solve is not None}
        fitted = solves[f"{down_proj(7)}.weight"]
        assert (fitted.reconstruct, fitted.compensate) == (True, wanted)
        assert (f"{down_proj(0)}.weight" in solves) == wanted


def test_compensation_that_is_asked_for_and_impossible_is_refused(
    tiny_dense: Path, tmp_path: Path, measured: MadeUp
) -> None:
    for text in (
        'method = "compensated"\nmode = "mxfp4"',
        'rules = [{ match = "*.gate_proj.weight", method = "compensated" }]',
    ):
        with pytest.raises(SurgeryError, match="need a profile with the Hessian of"):
            plan_steps(
                tiny_dense, tmp_path, with_profile(measured, tiny_dense, tmp_path, f"{QUANTIZE}{text}")
            )
    with pytest.raises(SurgeryError, match="need a profile with the Hessian of"):
        plan_steps(tiny_dense, tmp_path, f'{QUANTIZE}method = "compensated"')


# ---- the pass ----


@pytest.fixture(scope="module")
def mobile(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory, measured: MadeUp) -> Path:
    """A whole recipe with every kind of calibrated tensor, beside its profile."""
    folder = tmp_path_factory.mktemp("calibrated")
    bias = 'protect_first = 5\nprotected_layers = [6, 7]\ncompensation = "bias"'
    text = f'{QUANTIZE}keep = ["*.layers.[0-4].*"]\n{PRUNE}[[steps]]\nstep = "prune_neurons"\n{bias}'
    compress_steps(tiny_dense, folder, with_profile(measured, tiny_dense, folder, text))
    return folder


def test_bytes_do_not_depend_on_threads(mobile: Path, tiny_dense: Path, tmp_path: Path) -> None:
    text = (mobile / "recipe.toml").read_text("utf-8")
    for threads in (1, 3):
        execute(plan_steps(tiny_dense, mobile, text), tmp_path / str(threads), threads=threads)
        assert folder_hashes(tmp_path / str(threads)) == folder_hashes(mobile / "output")


def test_every_calibrated_value_is_derived_again(mobile: Path, tiny_dense: Path) -> None:
    verdict = verify(mobile / "output", open_checkpoint(tiny_dense))
    assert (verdict.problems, verdict.notes) == ([], [])
    assert "derived from the source again" in verdict.checks[-1]


def test_the_manifest_names_the_profile_by_its_hash(mobile: Path) -> None:
    wanted = folder_hashes(mobile)["a.profile"]
    steps = read_json(mobile / "output" / "surgery.json")["steps"]
    assert [step["profile_sha256"] for step in steps] == [wanted] * 3


def test_verify_without_the_profile_says_so_and_with_it_elsewhere_uses_it(
    mobile: Path, tiny_dense: Path, tmp_path: Path
) -> None:
    source = open_checkpoint(tiny_dense)
    moved = Path(shutil.move(mobile / "a.profile", tmp_path / "moved.profile"))
    try:
        verdict = verify(mobile / "output", source)
        assert verdict.ok
        assert len(verdict.notes) == 1
        assert f"needs the profile `{mobile / 'a.profile'}`" in verdict.notes[0]
        assert not any("derived" in check for check in verdict.checks)
        found = verify(mobile / "output", source, profile=moved)
        assert (found.problems, found.notes) == ([], [])
        assert any("derived" in check for check in found.checks)
    finally:
        shutil.move(moved, mobile / "a.profile")


def test_verify_notices_another_profile(
    mobile: Path, tiny_dense: Path, tmp_path: Path, measured: MadeUp
) -> None:
    other = made_up(seed=5).write(tmp_path / "other.profile", tiny_dense)
    verdict = verify(mobile / "output", open_checkpoint(tiny_dense), profile=other)
    assert not verdict.ok
    assert any("a file that it names changed" in problem for problem in verdict.problems)


def test_values_that_are_not_finite_are_refused(tiny_dense: Path, tmp_path: Path, measured: MadeUp) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_dense, source)
    tensor = open_checkpoint(source).tensors[f"{down_proj(7)}.weight"]
    with (source / tensor.file).open("r+b") as file:
        file.seek(tensor.start + 1000)
        file.write(b"\x80\x7f")
    with pytest.raises(SurgeryError, match=f"cannot encode `{down_proj(7)}.weight`"):
        compress_steps(source, tmp_path, with_profile(measured, source, tmp_path, f"{QUANTIZE}{PRUNE}"))
    assert not (tmp_path / "output").exists()


HESSIANS_REFUSED = {
    "absent": (lambda name, values: None, "need a Hessian of 512 inputs of `.*6.mlp.down_proj`, got none"),
    "of another width": (
        lambda name, values: values[:256] if name.endswith(profile.DIAGONAL) else values,
        r"need a Hessian of 512 inputs of `.*6.mlp.down_proj`, got one of \[256\]",
    ),
}


@pytest.mark.parametrize("case", HESSIANS_REFUSED)
def test_a_hessian_that_does_not_fit_is_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path, measured: MadeUp, case: str
) -> None:
    edit, message = HESSIANS_REFUSED[case]
    edited = {n: edit(n, v) if "hessian" in n else v for n, v in measured.statistics.items()}
    broken = MadeUp({}, {name: values for name, values in edited.items() if values is not None})
    text = with_profile(broken, tiny, tmp_path, f'{PRUNE}compensation = "columns"')
    with pytest.raises(SurgeryError, match=message):
        plan_steps(tiny, tmp_path, text)


def test_a_hessian_that_is_not_finite_gives_one_error(tiny: Path, tmp_path: Path, measured: MadeUp) -> None:
    name = f"{down_proj(6)}.{profile.DIAGONAL}"
    broken = MadeUp({}, {**measured.statistics, name: measured.statistics[name] * np.float32(np.nan)})
    with pytest.raises(SurgeryError, match="need finite values, got others"):
        compress_steps(tiny, tmp_path, with_profile(broken, tiny, tmp_path, PRUNE))
    assert not (tmp_path / "output").exists()
