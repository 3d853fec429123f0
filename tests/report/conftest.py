"""The demo model after `mobile`, and files of figures to report on: real ones, and made-up ones."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compressing import SCALED, plan_recipe
from report_pages import Page
from safetensors.numpy import save_file

from gemma_surgery.calibration.passages import Passage
from gemma_surgery.calibration.profile import FINGERPRINT_KEY, TOKENS_KEY
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli import main
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.demo_model.scenes import random_scene, render
from gemma_surgery.demo_model.tasks import ENGLISH_KINDS, random_task
from gemma_surgery.quality.evaluation import evaluate
from gemma_surgery.quality.step_costs import recipe_behind
from gemma_surgery.report.collect import Files, collect
from gemma_surgery.report.page import render_page
from gemma_surgery.surgery.executor import execute

NUM_LAYERS, WIDTH = 8, 512

Run = Callable[..., tuple[int, str, str]]
Report = Callable[..., Page]


@pytest.fixture(scope="session")
def original() -> Path:
    return demo_model_path("bf16")


@pytest.fixture(scope="session")
def mobile(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("reported") / "mobile"
    execute(plan_recipe(original, "mobile", SCALED), target)
    return target


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)`: exit code, stdout and stderr of `gemma-surgery`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-surgery", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def report(run: Run, mobile: Path, tmp_path: Path) -> Report:
    """`report(*options)`: the page about the compressed demo model."""

    def report(*options: object, folder: Path = mobile) -> Page:
        path = tmp_path / "page.html"
        code, _, err = run("report", folder, "-o", path, "--quiet", *options)
        assert code == 0, err
        return Page(path)

    return report


@pytest.fixture(scope="session")
def evaluation(mobile: Path, original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `eval --steps --json` says of the compressed demo model."""
    rng = random.Random(1)
    tasks = [random_task(rng, kind, split="held_out") for kind in ENGLISH_KINDS]
    passages = tuple(Passage(task.kind, task.prompt, task.answer) for task in tasks)
    path = tmp_path_factory.mktemp("evaluation") / "eval.json"
    recipe = recipe_behind(open_checkpoint(mobile), open_checkpoint(original))
    found = evaluate(mobile, original, passages, skip=("tasks",), recipe=recipe)
    path.write_text(json.dumps(found.to_json()))
    return path


@pytest.fixture(scope="session")
def other_evaluations(evaluation: Path) -> list[Path]:
    """The same as if it were of two other candidates, with figures that stand out."""
    paths = []
    for index, (name, mean) in enumerate((("wide", 0.0123), ("narrow", 0.0456))):
        document = json.loads(evaluation.read_text())
        document |= {"model": f"elsewhere/{name}", "mean_kld": mean, "kld_stderr": mean / 10, "steps": None}
        document["impossible_forms"] = ["I's"] if index else []
        path = evaluation.with_name(f"{name}.json")
        path.write_text(json.dumps(document))
        paths.append(path)
    return paths


@pytest.fixture(scope="session")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The part of a `compress --guard --json` that is read: three steps, of which one was left out."""
    percentiles = {"99.9": 1.5, "99": 0.9, "95": 0.5, "90": 0.4, "50": 0.03, "10": 1e-4, "1": 1e-6}
    measured = {"kld_stderr": 0.001, "kld_is_lower_bound": False, "same_top": 0.91, "size_bytes": 4321}
    kld = {"percentiles": percentiles, "max": 2.5, "min": 0.0}
    unmeasured = {"mean_kld": None, "kld": None, "size_bytes": 4000, "is_kept": True}
    steps = [
        {**measured, "step": "quantize", "number": 1, "mean_kld": 0.0312, "kld": kld, "is_kept": True},
        {**measured, "step": "drop_layers", "number": 2, "mean_kld": 0.754, "kld": kld, "is_kept": False},
        {**unmeasured, "step": "split_weights", "number": 3},
    ]
    path = tmp_path_factory.mktemp("guard") / "guarded.json"
    path.write_text(json.dumps({"plan_sha256": "0" * 64, "steps": [], "guard": steps}))
    return path


@pytest.fixture(scope="session")
def activations() -> np.ndarray:
    """Made-up mean activations `[L, F]`, most active first."""
    values = np.random.default_rng(0).lognormal(-1, 1, (NUM_LAYERS, WIDTH))
    return np.sort(values, axis=1)[:, ::-1].astype(np.float32)


@pytest.fixture(scope="session")
def profile(original: Path, activations: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(1)
    prefix = "language_model.model.layers."
    statistics: dict[str, np.ndarray] = {}
    for layer, values in enumerate(activations):
        statistics[f"{prefix}{layer}.mlp.mean_abs_activation"] = rng.permutation(values)
        statistics[f"{prefix}{layer}.block_influence"] = np.array([0.01 * (layer + 1)], np.float32)
    path = tmp_path_factory.mktemp("profile") / "profile.safetensors"
    metadata = {FINGERPRINT_KEY: open_checkpoint(original).fingerprint, TOKENS_KEY: "4321"}
    save_file(statistics, path, metadata)
    return path


@pytest.fixture(scope="session")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = [
        {"bytes": 200_000 + 50_000 * i, "kl": 0.5 / (i + 1) ** 2, "label": f"recipe {i}", "pareto": True}
        for i in range(5)
    ]
    points.append({"bytes": 390_000, "kl": 0.31, "label": "beaten", "pareto": False})
    sensitivity = [
        {"step": "quantize", "layer": layer, "width": 4, "kl": 0.001 * (layer + 1), "bytes": 1000}
        for layer in range(NUM_LAYERS)
    ]
    sensitivity.append({"step": "reduce_resolution", "layer": None, "width": None, "kl": 0.02, "bytes": None})
    path = tmp_path_factory.mktemp("search") / "search.json"
    points[3] |= {"best": True, "kl_stderr": 0.001}
    dropped = {"step": "drop_layers", "layer": None, "dropped": 2, "width": None, "kl": -0.003, "bytes": 5}
    document = {"points": points, "sensitivity": [*sensitivity, dropped], "base_kl": 0.011}
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows in the form of `bench --json`."""
    shared = {
        "images": 0, "prompt_tokens": 256, "generation_tokens": 32, "num_trials": 5, "vision_seconds": 0.0,
        "bandwidth_fraction": 0.5,
    }  # fmt: skip
    rows = [
        {
            **shared, "model": "mobile", "prompt_tps": 900.0, "generation_tps": 321.0, "against": "bf16",
            "generation_tps_min": 300.0, "generation_tps_max": 333.0, "peak_memory_bytes": 7_770_000,
            "bytes_per_token": 1_110_000, "ratios": {"generation_tps": 1.5, "prompt_tps": 1.2},
        },
        {
            **shared, "model": "bf16", "prompt_tps": 750.0, "generation_tps": 214.0,
            "peak_memory_bytes": 9_990_000, "bytes_per_token": 4_440_000,
        },
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    rng = random.Random(2)
    for index in range(2):
        render(random_scene(rng, split="held_out")).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("Reverse the list: street, near, flower\n\nWhat is the first word? far, dog\n")
    return path


@pytest.fixture(scope="session")
def full_page(
    mobile: Path, original: Path, evaluation: Path, other_evaluations: list[Path], guard: Path,
    profile: Path, search: Path, bench: Path, scenes: Path, prompts: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Page:  # fmt: skip
    """A page with all there is."""
    files = Files(
        mobile,
        evaluations=(*other_evaluations, evaluation, guard),
        profile=profile,
        search=search,
        benches=(bench,),
        reference=str(original),
        prompts=prompts,
        images=scenes,
    )
    path = tmp_path_factory.mktemp("page") / "full page.html"
    path.write_text(render_page(collect(files)), "utf-8")
    return Page(path)
