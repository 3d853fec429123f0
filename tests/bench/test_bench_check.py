"""`make bench-check` fails on a fallen ratio, and on nothing else."""

from __future__ import annotations

import json

import check
import pytest
from bench_runs import benchmark


@pytest.fixture
def run_check(monkeypatch, tmp_path, capsys):
    """Returns a function that runs the script: its exit code, 0 or 1, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        baseline = ["--baseline", str(tmp_path / "baseline.json")]
        monkeypatch.setattr("sys.argv", ["check.py", *map(str, arguments), *baseline])
        try:
            check.main()
        except SystemExit as end:
            return (end.code if isinstance(end.code, int) else 1), capsys.readouterr().out + str(end.code)
        return 0, capsys.readouterr().out

    return run


def good(ours: float = 0.020, stock: float = 2.0, **changes: object) -> list[dict]:
    return [benchmark("ours", ours, **changes), benchmark("stock MLX", stock, **changes)]


@pytest.fixture
def baseline(run_check, write_run):
    assert run_check(write_run(*good()), "--write")[0] == 0


def test_the_run_that_made_the_baseline_passes(run_check, write_run, baseline):
    assert run_check(write_run(*good())) == (0, "1 cases within their tolerance\n")


def test_a_slower_machine_with_the_same_ratios_passes(run_check, write_run, baseline):
    limits = {"read_per_second": 3.2e9, "float_per_second": 40e9}
    assert run_check(write_run(*good(0.200, 20.0, **limits)))[0] == 0


def test_a_fallen_share_of_the_limit_is_one_line(run_check, write_run, baseline):
    code, text = run_check(write_run(*good(0.025, 2.5)))
    assert code == 1
    assert text.splitlines()[0] == (
        "tied_logits | V=1000, T=1 | bf16: need 0.68 of the limit (baseline 0.8 less 15%), got 0.64"
    )
    assert len([line for line in text.splitlines() if "need" in line]) == 1


def test_a_fallen_factor_over_stock_is_one_line(run_check, write_run, baseline):
    code, text = run_check(write_run(*good(0.020, 1.2)))
    assert code == 1
    assert "need 70 over stock MLX (baseline 100 less 30%), got 60" in text


@pytest.mark.parametrize(("ours", "stock"), [(0.023, 2.0), (0.020, 1.45), (0.010, 5.0)])
def test_within_the_tolerance_or_better_passes(run_check, write_run, baseline, ours, stock):
    assert run_check(write_run(*good(ours, stock)))[0] == 0


def test_a_case_that_was_not_measured_fails(run_check, write_run, baseline):
    code, text = run_check(write_run(*good(op="tied_argmax")))
    assert code == 1
    assert "need a measurement of the limit, got none" in text


def test_a_new_case_is_noted_and_passes(run_check, write_run, baseline):
    code, text = run_check(write_run(*good(), *good(op="tied_argmax")))
    assert code == 0
    assert "note: tied_argmax | V=1000, T=1 | bf16 is not in the baseline" in text


def test_of_two_runs_the_better_ratio_counts(run_check, write_run, baseline):
    first = write_run(*good(0.030, 3.0), name="first.json")
    second = write_run(*good(0.020, 1.2), name="second.json")
    assert run_check(first)[0] == run_check(second)[0] == 1
    assert run_check(first, second)[0] == 0


@pytest.mark.parametrize("seconds", [1.0, 0.010])
def test_a_share_far_below_the_limit_or_above_it_is_not_compared(run_check, write_run, seconds):
    assert run_check(write_run(*good(seconds, 100 * seconds)), "--write")[0] == 0
    assert run_check(write_run(*good(2 * seconds, 200 * seconds)))[0] == 0


def test_another_instruction_set_needs_a_baseline_of_its_own(run_check, write_run, baseline):
    code, text = run_check(write_run(*good(), kernels="neon"))
    assert code == 1
    assert "need a baseline for `neon`, got `avx512`" in text
    assert "hint: `make bench-baseline`" in text


def test_writing_keeps_the_baselines_of_other_instruction_sets(run_check, write_run, baseline, tmp_path):
    assert run_check(write_run(*good(0.030), kernels="neon"), "--write")[0] == 0
    document = json.loads((tmp_path / "baseline.json").read_text())
    assert set(document) == {"avx512", "neon"}
    assert document["avx512"]["ratios"]["tied_logits | V=1000, T=1 | bf16"]["of the limit"] == 0.8
    assert document["neon"]["machine"]["processor"] == "Some CPU"


def test_an_empty_run_is_refused(run_check, write_run, baseline):
    code, text = run_check(write_run())
    assert code == 1
    assert "need cases in the run, got none" in text


def test_one_lucky_run_of_three_does_not_become_the_baseline(run_check, write_run):
    cases = {"first": good(), "lucky": good(0.016, 2.4), "last": good()}
    runs = [write_run(*benchmarks, name=f"{name}.json") for name, benchmarks in cases.items()]
    assert run_check(*runs, "--write")[0] == 0
    assert run_check(write_run(*good(0.023, 2.1)))[0] == 0
