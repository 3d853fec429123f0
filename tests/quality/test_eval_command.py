"""`eval`: prints what Python measures, and every mistake is one sentence."""

from __future__ import annotations

import json
import sys

import pytest

from gemma_surgery.calibration.passages import read_passages
from gemma_surgery.cli import main
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.quality.evaluation import evaluate


@pytest.fixture
def run(monkeypatch, capsys):
    """`run(*arguments)`: exit code, stdout and stderr of `gemma-surgery eval`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-surgery", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def data(passages, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": p.prompt, "text": p.text}) + "\n" for p in passages[:8]))
    return path


def test_json_has_the_numbers_of_the_library(run, mobile, dense, data) -> None:
    skip = ("tasks", "images")
    arguments = [item for part in skip for item in ("--skip", part)]
    code, out, err = run(mobile, "--reference", dense, "--calibration", data, *arguments, "--json", "--quiet")
    assert (code, err) == (0, "")
    found = json.loads(out.splitlines()[-1])
    expected = evaluate(mobile, dense, read_passages(data), skip=skip).to_json()
    for document in (found, expected):
        del document["seconds"]
    assert found == expected
    assert {"mean_kld", "kld_stderr", "kld_99", "same_top", "ppl", "ppl_reference"} <= found.keys()
    assert {"repetition_rate", "tasks", "images"} <= found.keys()


def test_the_table_names_protocol_and_figures(run, mobile, dense, data) -> None:
    code, out, err = run(mobile, "--reference", dense, "--calibration", data, "--skip", "tasks")
    assert code == 0
    for text in (
        "protocol: chat: one passage per sample",
        "begins with <bos>",
        "places scored",
        "mean KL divergence, nats",
        "same top token",
        "perplexity of the reference",
        "right contractions, of",
        "loops, in 8 continuations",
        "tokens of the reference are written in pieces",
        "time: ",
    ):
        assert text in out, text
    # Progress goes where it disturbs nobody, with the time that is left.
    assert "reference: " in err and " s left" in err and "model: " in err


def test_steps_are_a_list_in_the_json_and_a_table_for_people(run, mobile, dense, data) -> None:
    parts = [item for part in ("contractions", "repetition", "tasks") for item in ("--skip", part)]
    options = ("--reference", dense, "--calibration", data, "--samples", 2, "--steps", *parts)
    code, out, err = run(mobile, *options, "--json", "--quiet")
    assert (code, err) == (0, "")
    document = json.loads(out.splitlines()[-1])
    steps = document["steps"]
    assert [each["step"] for each in steps][:2] == ["quantize", "tie_head"]
    assert steps[0]["kld"]["percentiles"].keys() == document["kld"]["percentiles"].keys()
    measured = [each["mean_kld"] for each in steps if each["mean_kld"] is not None]
    assert measured[-1] == document["mean_kld"]
    code, out, err = run(mobile, *options)
    assert code == 0 and "what the recipe costs step by step" in out
    for each in steps:
        (line,) = (line for line in out.splitlines() if f"{each['number']} {each['step']}" in line)
        shown = "unchanged" if each["mean_kld"] is None else f"{each['mean_kld']:.6f} ± "
        assert shown in line, line
    assert "after drop_layers: " in err and "after tie_head" not in err


def test_perplexity_alone_needs_no_reference(run, dense, data) -> None:
    code, out, _ = run(dense, "--calibration", data, "--skip", "tasks", "--skip", "repetition", "--quiet")
    assert code == 0 and "perplexity" in out and "KL divergence" not in out


def test_steps_of_another_original_are_refused(run, mobile, data) -> None:
    code, out, err = run(mobile, "--reference", demo_model_path("4bit"), "--calibration", data, "--steps")
    assert code == 2 and out == ""
    assert err.startswith("error: [eval] `mobile` is made of another checkpoint: fingerprint ")
    assert "hint: give the checkpoint as `--reference` that it was made of" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--skip", "speed"), "error: [eval] need parts to skip out of"),
        (
            ("--cache", "c"),
            "error: [eval] need a reference for a cache of it, got none\nhint: give `--reference`",
        ),
        (("--reference", "nowhere"), "error: [checkpoint] need a folder or a Hugging Face repository id"),
        (("--steps",), "error: [eval] need `--reference` with `--steps`, got none"),
        (
            ("--steps", "--reference", demo_model_path("4bit")),
            "error: [eval] need a `surgery.json` in `",
        ),
        (("--profile", __file__), "error: [eval] need `--steps` with `--profile`, got none"),
        (("--calibration", "nowhere.txt"), "error: ["),
        (("--images", "nowhere"), "error: ["),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(run, dense, data, arguments, message) -> None:
    options = () if "--calibration" in arguments else ("--calibration", data)
    code, out, err = run(dense, *options, *arguments, "--quiet")
    assert code == 2 and out == "" and err.startswith(message)
