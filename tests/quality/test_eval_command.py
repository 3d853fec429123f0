"""`eval`: prints what Python measures, and every mistake is one sentence."""

from __future__ import annotations

import json
import sys

import pytest

from gemma_surgery.calibration.passages import read_passages
from gemma_surgery.cli import main
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


def test_perplexity_alone_needs_no_reference(run, dense, data) -> None:
    code, out, _ = run(dense, "--calibration", data, "--skip", "tasks", "--skip", "repetition", "--quiet")
    assert code == 0 and "perplexity" in out and "KL divergence" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--skip", "speed"), "error: [eval] need parts to skip out of"),
        (
            ("--cache", "c"),
            "error: [eval] need a reference for a cache of it, got none\nhint: give `--reference`",
        ),
        (("--reference", "nowhere"), "error: [checkpoint] need a folder or a Hugging Face repository id"),
        (("--calibration", "nowhere.txt"), "error: ["),
        (("--images", "nowhere"), "error: ["),
    ],
)
def test_mistakes_exit_with_2_and_one_sentence(run, dense, data, arguments, message) -> None:
    options = () if "--calibration" in arguments else ("--calibration", data)
    code, out, err = run(dense, *options, *arguments, "--quiet")
    assert code == 2 and out == "" and err.startswith(message)
