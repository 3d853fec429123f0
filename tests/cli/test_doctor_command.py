"""`doctor` gives a verdict: on the screen, as JSON and as exit code."""

from __future__ import annotations

import json
from typing import Any

import mlx.core as mx
import pytest
from typer.testing import CliRunner

from gemma_surgery import ops
from gemma_surgery._native import ext
from gemma_surgery.cli import app


def doctor(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    return result.exit_code, result.stdout


def test_a_healthy_installation_has_every_op_right_on_every_instruction_set() -> None:
    code, text = doctor("--json")
    report = json.loads(text.splitlines()[-1])
    assert code == 0 and report["ok"]
    assert report["verdict"].startswith("verdict: healthy")
    pairs = {(one["op"], one["backend"]) for one in report["ops"]}
    assert pairs >= {(op, isa) for op in ops.__all__ for isa in ext.available_isas()}
    assert all(one["ok"] and one["error"] < 2e-2 for one in report["ops"])
    assert {f"kernels, {isa}" for isa in ext.available_isas()} <= {one["name"] for one in report["checks"]}


def test_the_screen_shows_a_table_and_ends_with_the_verdict() -> None:
    code, text = doctor()
    assert code == 0
    assert "FAIL" not in text and "WRONG" not in text
    assert all(op in text for op in ops.__all__)
    assert text.splitlines()[-1].startswith("verdict: healthy, all ops are right on ")


@pytest.fixture
def wrong_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ext.tied_logits

    def wrong(*arguments: Any) -> mx.array:
        logits = right(*arguments)
        # The last row is missing, as where a kernel forgets the end of a block.
        return mx.where(mx.arange(logits.shape[-1]) == logits.shape[-1] - 1, 0.0, logits).astype(logits.dtype)

    monkeypatch.setattr(ext, "tied_logits", wrong)


@pytest.mark.usefixtures("wrong_logits")
def test_a_planted_wrong_result_exits_with_1_and_names_op_and_format() -> None:
    code, text = doctor()
    assert code == 1
    assert "FAIL  kernels, portable: `tied_logits` on portable, 2 bits in groups of 32, float16" in text
    assert "WRONG" in text
    last = text.splitlines()[-1]
    assert last.startswith("verdict: wrong results from `tied_logits` on ")
    assert "quantized_linear" not in last


@pytest.mark.usefixtures("wrong_logits")
def test_a_planted_wrong_result_is_in_the_json() -> None:
    code, text = doctor("--json")
    report = json.loads(text.splitlines()[-1])
    assert code == 1 and not report["ok"]
    assert {one["op"] for one in report["ops"] if not one["ok"]} == {"tied_logits"}
    assert all("allowed" in one["detail"] for one in report["ops"] if not one["ok"])


def test_what_cannot_be_compared_is_null_in_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ext.gelu_tanh
    monkeypatch.setattr(ext, "gelu_tanh", lambda *arguments: right(*arguments) * mx.nan)
    code, text = doctor("--json")
    report = json.loads(text.splitlines()[-1], parse_constant=pytest.fail)
    assert code == 1
    assert {one["error"] for one in report["ops"] if not one["ok"]} == {None}
