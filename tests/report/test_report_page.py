"""The page says what the files say, and of what is missing only how it is made."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
from compressing import read_json

from gemma_surgery.calibration.heatmap import HIGHEST, LOWEST
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.recipes.recipe import load_recipe, make_plan
from gemma_surgery.report.page import template_text
from gemma_surgery.report.scripts import tokens_by_script
from gemma_surgery.report.wording import three_digits
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.verification import verify

FIGURES = (
    *("waterfall", "components", "kld", "spread", "figures", "step-kld", "step-spread", "texts", "pictures"),
    *("passes", "scripts"),
    *("heatmap", "influence", "pareto", "sensitivity", "sensitivity-steps", "rates", "speeds", "identity"),
    *("notes", "hashes", "recipe", "again"),
)


def whole(text: str) -> int:
    return int(text.replace(",", ""))


def test_a_page_with_everything_has_every_figure_and_is_small(full_page) -> None:
    page = full_page
    assert [key for key in FIGURES if f'id="{key}"' not in page.html] == []
    assert page.with_class("missing") == []
    ids = [element.attributes["id"] for element in page.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert len(page.html.encode()) < 1_000_000
    assert not re.search(r"\b(nan|inf|None|null|undefined)\b", page.text)


def test_the_waterfall_ends_at_the_bytes_of_the_output(report, mobile) -> None:
    manifest = read_json(mobile / "surgery.json")
    _, source, *steps, output = report().table("waterfall")
    assert whole(source[3]) == manifest["source"]["tensor_bytes"]
    assert whole(output[3]) == manifest["tensor_bytes"] == whole(steps[-1][3])
    for row, step in zip(steps, manifest["steps"], strict=True):
        assert row[0] == step["step"]
        assert (whole(row[1]), whole(row[2] or "0")) == (step["saved_bytes"], step["added_bytes"])
        assert row[4] == ("exact" if step["lossless"] else "new values")


def test_components_add_up_before_and_after(report, mobile) -> None:
    manifest = read_json(mobile / "surgery.json")
    _, *rows = report().table("components")
    assert sum(whole(row[1]) for row in rows) == manifest["source"]["tensor_bytes"]
    assert sum(whole(row[2]) for row in rows) == manifest["tensor_bytes"]
    assert {"text layers", "embedding", "vision tower", "projector"} == {row[0] for row in rows}


def test_the_manifest_keeps_the_table_of_a_step_and_its_plan_stays_the_same(mobile, original) -> None:
    steps = {step["step"]: step for step in read_json(mobile / "surgery.json")["steps"]}
    assert steps["prune_vocabulary"]["table"][0] == ["pass", "matched", "added"]
    assert "table" not in steps["drop_layers"]
    assert verify(mobile, open_checkpoint(original)).ok


def test_an_older_manifest_is_reported_without_what_it_lacks(report, mobile, tmp_path) -> None:
    older = tmp_path / "older"
    older.mkdir()
    for file in mobile.iterdir():
        (older / file.name).symlink_to(file)
    manifest = read_json(mobile / "surgery.json")
    del manifest["source"]["module_bytes"]
    for step in manifest["steps"]:
        step.pop("table", None)
    (older / "surgery.json").unlink()
    (older / "surgery.json").write_text(json.dumps(manifest))
    page = report(folder=older)
    lines = " ".join(element.text for element in page.with_class("missing"))
    assert "Bytes of each component" in lines and "Kept tokens by pass" in lines
    assert 'id="components"' not in page.html and 'id="passes"' not in page.html


def test_divergences_are_those_of_the_evaluations(report, evaluation, other_evaluations) -> None:
    options = [item for path in (*other_evaluations, evaluation) for item in ("--evaluation", path)]
    page = report(*options)
    measured = read_json(evaluation)
    labels, figures = zip(*((row[0], row[1]) for row in page.table("kld")[1:]), strict=True)
    assert labels == ("wide", "narrow", "mobile")
    assert figures[:2] == ("0.0123", "0.0456")
    assert float(figures[2]) == pytest.approx(measured["mean_kld"], rel=5e-3)
    spread = {row[0]: row[-1] for row in page.table("spread")[1:]}
    for percent, value in measured["kld"]["percentiles"].items():
        assert float(spread[f"{percent} %"]) == pytest.approx(value, rel=5e-3, abs=1e-12)
    figure = page.with_class("keys")[0].text
    # The headline is that of the output itself, never of another candidate.
    assert "mean KL, nats" in figure and "0.0123" not in figure and "0.0456" not in figure


def test_divergences_after_each_step_are_those_of_the_evaluation(report, evaluation) -> None:
    page = report("--evaluation", evaluation)
    steps = read_json(evaluation)["steps"]
    rows = page.table("step-kld")[1:]
    assert [row[0] for row in rows] == [f"{step['number']} {step['step']}" for step in steps]
    measured = [step for step in steps if step["mean_kld"] is not None]
    assert 1 < len(measured) < len(steps)
    for row, step in zip(rows, steps, strict=True):
        assert whole(row[5]) == step["size_bytes"]
        if step in measured:
            found = [float(row[1]), float(row[2]), float(row[3])]
            assert found == pytest.approx(
                [step["mean_kld"], step["kld_stderr"], step["kld_99"]], rel=6e-3, abs=1e-12
            )
        else:
            assert row[1:5] == ["–"] * 4
    head, *spread = page.table("step-spread")
    assert head[1:] == [f"{step['number']} {step['step']}" for step in measured]
    (median,) = (row[1:] for row in spread if row[0] == "50 %")
    expected = [step["kld"]["percentiles"]["50"] for step in measured]
    assert [float(cell) for cell in median] == pytest.approx(expected, rel=6e-3, abs=1e-12)
    # A step that changes no answer repeats the bar before it.
    start = page.elements.index(page.by_id("step-kld"))
    bars = [e for e in page.elements[start:] if e.attributes.get("class", "").startswith("bar ")][: len(rows)]
    last, before = bars[-1].attributes, bars[-2].attributes
    assert steps[-1]["mean_kld"] is None and last["class"] == "bar kept"
    assert last["width"] == before["width"] and before["class"] == "bar plain"


def test_what_the_guard_of_compress_measured_is_drawn_too(report, guard, evaluation) -> None:
    page = report("--evaluation", guard)
    assert [row[0] for row in page.table("step-kld")[1:]] == [
        "1 quantize",
        "2 drop_layers (left out)",
        "3 split_weights",
    ]
    assert [row[1] for row in page.table("step-kld")[1:]] == ["0.0312", "0.754", "–"]
    assert [row[1:] for row in page.table("step-spread") if row[0] == "maximum"] == [["2.50", "2.50"]]
    # It is of the steps alone: for the whole, `eval` is named.
    assert 'id="kld"' not in page.html and "gemma-surgery eval OUT" in page.with_class("missing")[0].text
    both = report("--evaluation", evaluation, "--evaluation", guard)
    labels = [row[0] for row in both.table("step-kld")[1:]]
    assert labels[0] == "mobile: 1 quantize" and labels[-1] == "guarded: 3 split_weights"


def test_the_json_of_a_guarded_run_is_taken_as_it_is(run, report, original, tmp_path) -> None:
    recipe, output, path = tmp_path / "two.toml", tmp_path / "output", tmp_path / "compress.json"
    recipe.write_text('[[steps]]\nstep = "quantize"\n[[steps]]\nstep = "split_weights"\n')
    guarded = ("--guard", "kl=1", "--guard-samples", 2, "--json", "--quiet")
    code, out, err = run("compress", original, "-o", output, "--recipe", recipe, *guarded)
    assert code == 0, err
    path.write_text(out)
    (first, last), protocol = (json.loads(out.splitlines()[-1])[key] for key in ("guard", "guard_protocol"))
    page = report("--evaluation", path, "--card", folder=output)
    assert page.table("step-kld")[1][:2] == ["1 quantize", f"{three_digits(first['mean_kld'])}"]
    assert last["mean_kld"] is None and protocol["samples"] == 2
    assert "How it was measured: chat: one passage per sample" in page.text
    # It measured this output, so that the card says it as well.
    assert f"| 1 quantize | {three_digits(first['mean_kld'])} |" in (output / "README.md").read_text()


def test_bars_are_as_long_as_their_figures(report, other_evaluations) -> None:
    page = report("--evaluation", other_evaluations[0], "--evaluation", other_evaluations[1])
    start = page.elements.index(page.by_id("kld"))
    bars = [e for e in page.elements[start:] if e.attributes.get("class") == "bar plain"][:2]
    one, other = (float(bar.attributes["width"].rstrip("%")) for bar in bars)
    assert other / one == pytest.approx(0.0456 / 0.0123, rel=1e-3)


def test_the_published_failure_is_called_by_its_name(report, other_evaluations) -> None:
    harmless, failed = (report("--evaluation", path).text for path in other_evaluations)
    sentence = "narrow wrote “I's”: the published failure"
    assert sentence in failed and "published failure" not in harmless


def test_what_was_not_measured_is_no_figure(report, evaluation, tmp_path) -> None:
    document = read_json(evaluation) | {"kld": None, "mean_kld": None, "contractions": None, "steps": None}
    path = tmp_path / "half.json"
    path.write_text(json.dumps(document))
    page = report("--evaluation", path)
    assert 'id="spread"' not in page.html and 'id="kld"' not in page.html
    missing = " ".join(" ".join(element.text.split()) for element in page.with_class("missing"))
    assert (
        'id="step-kld"' not in page.html and "gemma-surgery eval OUT --reference ORIGINAL --steps" in missing
    )
    names = [row[0] for row in page.table("figures")]
    assert "perplexity" in names and "contractions right" not in names


def test_a_bare_page_names_the_command_for_everything_it_lacks(report) -> None:
    page = report()
    lines = [" ".join(element.text.split()) for element in page.with_class("missing")]
    commands = (
        "eval",
        "report OUT --reference",
        "report OUT --reference ORIGINAL --images",
        "profile",
        "search",
        "bench",
    )
    for command in commands:
        assert any(f"gemma-surgery {command}" in line for line in lines), command
    assert page.named("script") == [] and page.named("canvas") == []


def test_scripts_count_every_token_of_the_output_once(report, mobile) -> None:
    tokenizer = TokenizerFile.read(mobile / "tokenizer.json")
    kept = int(tokenizer.exists.sum()) - len(tokenizer.unused_ids)
    rows = report().table("scripts")[1:]
    assert sum(whole(row[1]) for row in rows) == kept
    found = tokens_by_script(mobile)
    assert {row[0]: whole(row[1]) for row in rows} == found
    assert found["bytes"] == 256 and found["Latin"] > found["digits"] > 0


def test_heatmap_cells_are_means_of_ranges_of_neurons(report, profile, activations) -> None:
    page = report("--profile", profile)
    data = page.by_id("heatmap-canvas").attributes
    rows, columns = int(data["height"]), int(data["width"])
    levels = np.frombuffer(base64.b64decode(data["data-cells"]), "<u2").reshape(rows, columns)
    shown = LOWEST * (HIGHEST / LOWEST) ** (levels / 65535)
    width = activations.shape[1]
    for layer in range(rows):
        for column in (0, 1, columns // 2, columns - 1):
            cell = activations[layer, column * width // columns : (column + 1) * width // columns]
            expected = np.clip(cell.mean(), LOWEST, HIGHEST)
            assert shown[layer, column] == pytest.approx(expected, rel=1e-3)
    assert "on 4,321 tokens" in page.text
    influence = page.table("influence")[1:]
    assert [float(row[1]) for row in influence] == pytest.approx([0.01 * (i + 1) for i in range(rows)])


def test_speeds_are_those_of_the_bench(report, bench) -> None:
    page = report("--bench", bench)
    (first, second) = page.table("speeds")[1:]
    assert first[0] == "mobile" and "321 (300–333)" in first and "7.77 MB" in first
    assert second[0] == "bf16" and "9.99 MB" in second
    assert "mobile against bf16, 256 tokens: prompt 1.20x, generation 1.50x" in page.text


def test_the_front_has_its_points_and_the_others(report, search) -> None:
    page = report("--search", search)
    assert len(page.with_class("on-front")) == 5 and len(page.with_class("other")) == 1
    assert any("beaten: 390 kB, 0.310 nats" in element.text for element in page.with_class("other"))
    assert len(page.table("sensitivity")) == 1 + 8
    (chosen,) = (row for row in page.table("pareto") if "chosen" in row[-1])
    assert chosen[0] == "recipe 3" and len(page.with_class("chosen")) == 1
    assert page.table("sensitivity-steps")[-1][0] == "drop_layers, 2 layers"
    assert "on top of the 0.0110 nats of the base recipe" in page.text


def test_both_models_answer_and_differences_are_marked(report, original, prompts, scenes) -> None:
    page = report("--reference", original, "--prompts", prompts, "--images", scenes, "--answers", "2")
    answers = [element.text for element in page.with_class("answer")]
    assert len(answers) == 8 and answers[0] == "flower, near, street"
    images = [e.attributes["src"] for e in page.named("img")]
    assert len(images) == 2 and all(src.startswith("data:image/jpeg;base64,") for src in images)
    assert all(len(src) <= 40_000 for src in images)
    # The original's vocabulary is at hand now.
    assert page.table("scripts")[0] == ["script", "tokens", "in the original", "kept"]


def test_the_recipe_of_the_page_makes_the_same_tensors_again(report, mobile, original, tmp_path) -> None:
    pre = next(e for e in report().named("pre") if "[[steps]]" in e.text)
    path = tmp_path / "recipe.toml"
    path.write_text(pre.text)
    again = make_plan(open_checkpoint(original), load_recipe(str(path)))
    manifest = read_json(mobile / "surgery.json")
    assert [step.to_json() for step in again.steps] == [
        {key: value for key, value in step.items() if key != "table"} for step in manifest["steps"]
    ]


def test_colours_meet_wcag_aa_in_both_schemes() -> None:
    style = template_text("style.css")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    for block in (light, dark):
        colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))
        for text in ("ink", "muted", "link"):
            for ground in ("paper", "panel"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for ground in ("gone", "new"):
            assert contrast(colours["ink"], colours[ground]) >= 4.5, ground
        for graphic in ("plain", "kept", "less", "more", *(f"s{index}" for index in range(6))):
            assert contrast(colours[graphic], colours["paper"]) >= 3, graphic


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_a_checkpoint_without_a_manifest_is_refused(run, tmp_path) -> None:
    path = tmp_path / "page.html"
    code, _, err = run("report", demo_model_path("bf16"), "-o", path)
    assert code == 2 and "need a `surgery.json`" in err and not path.exists()


def test_only_own_pages_are_replaced(run, mobile, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("mine")
    assert run("report", mobile, "-o", path)[0] == 2
    assert path.read_text() == "mine"
    assert run("report", mobile, "-o", path, "--overwrite")[0] == 0
    assert run("report", mobile, "-o", path)[0] == 0


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("--evaluation", '{"ok": true}', "need the JSON of `gemma-surgery eval --json`"),
        ("--evaluation", '{"mean_kld": "much"}', "need a number under `mean_kld`"),
        ("--evaluation", '{"mean_kld": 1e999}', "need a finite number under `mean_kld`"),
        ("--evaluation", "no JSON", "is not valid JSON"),
        ("--evaluation", '{"ppl": 1, "notes": [1]}', "need a list of texts under `notes`"),
        ("--evaluation", '{"ppl": 1, "steps": [1]}', "need a list of objects under `steps`"),
        ("--evaluation", '{"guard": [{"mean_kld": "much"}]}', "need a number under `mean_kld`"),
        ("--evaluation", '{"steps": [], "plan_sha256": ""}', "or `compress --guard ... --json`"),
        ("--search", '{"points": []}', "need `points` or `sensitivity`"),
        ("--search", '{"points": [{"bytes": 1}]}', "need a number under `kl`, got null"),
        ("--bench", '{"ok": true}', "need the JSON of `gemma-surgery bench --json`"),
    ],
)
def test_files_of_another_kind_are_refused_in_one_sentence(
    run, mobile, tmp_path, option, content, message
) -> None:
    path = tmp_path / "given.json"
    path.write_text(content)
    code, _, err = run("report", mobile, "-o", tmp_path / "page.html", option, path)
    assert code == 2 and message in err and err.count("error:") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_profile_of_another_checkpoint_is_refused(run, tiny, profile, tmp_path) -> None:
    from compressing import compress_steps

    other = compress_steps(tiny, tmp_path, '[[steps]]\nstep = "tie_head"\n')
    code, _, err = run("report", other, "-o", tmp_path / "page.html", "--profile", profile)
    assert code == 2 and "need a profile of checkpoint" in err


def test_images_need_a_reference(run, mobile, scenes, tmp_path) -> None:
    code, _, err = run("report", mobile, "-o", tmp_path / "page.html", "--images", scenes)
    assert code == 2 and "need `--reference` with `--images`" in err
