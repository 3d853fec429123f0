"""Ratios are made of medians and of the limits measured with them, and of nothing else."""

from __future__ import annotations

import pytest
from bench_runs import benchmark
from results import read_run
from table import section


def test_share_of_the_limit_is_the_time_that_the_limit_allows_over_the_time_taken(write_run):
    _, (case,) = read_run(write_run(benchmark("ours", 0.020), benchmark("stock MLX", 2.0)))
    assert case.ratios() == pytest.approx({"of the limit": 0.8, "over stock MLX": 100})
    assert case.ours.roof_name == "read"


def test_arithmetic_is_the_limit_where_it_takes_longer_than_reading(write_run):
    _, (case,) = read_run(write_run(benchmark("ours", 1.0, operations=200e9)))
    assert case.ratios() == pytest.approx({"of the limit": 0.5})
    assert case.ours.roof_name == "float32"


def test_several_calls_and_a_share_of_the_work_are_scaled_to_one_whole_call(write_run):
    run = write_run(benchmark("ours", 0.2, calls=10), benchmark("stock MLX", 0.5, share=0.25))
    _, (case,) = read_run(run)
    assert case.ours.seconds == pytest.approx(0.02)
    assert case.others[0].seconds == pytest.approx(2.0)


def test_a_case_without_bytes_and_operations_has_no_share(write_run):
    run = write_run(
        benchmark("ours", 0.5, size_bytes=0, operations=0), benchmark("cp", 1.0, size_bytes=0, operations=0)
    )
    _, (case,) = read_run(run)
    assert case.ratios() == {"over cp": 2.0}


def test_cases_of_other_dtypes_are_not_mixed_up(write_run):
    run = write_run(
        benchmark("ours", 0.02),
        benchmark("ours", 0.04, dtype="f32"),
        benchmark("stock MLX", 2.0, dtype="f32"),
    )
    _, cases = read_run(run)
    assert [(case.dtype, len(case.others)) for case in cases] == [("bf16", 0), ("f32", 1)]
    assert len({case.name for case in cases}) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": []}'])
def test_a_file_that_is_no_run_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="need the JSON of a bench run"):
        read_run(path)


def test_the_section_names_machine_limits_and_what_was_scaled(write_run):
    text = section(
        *read_run(
            write_run(
                benchmark("ours", 0.020),
                benchmark("stock MLX", 0.5, share=0.25, rounds=1),
                benchmark("ours", 150e-6, op="gather_embed", size_bytes=1000, operations=0),
            )
        )
    )
    for part in (
        "2026-11-21, commit abc1234",
        "Some CPU",
        "reference BLAS",
        "reading 32.0 GB/s",
        "400 GFLOP/s",
    ):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1] == (
        "| tied_logits | V=1000, T=1 | bf16 | 20.0 ms | 25.6 GB/s | 80% | stock MLX ~2.00 s (once) | 100 |"
    )
    assert "| 150 µs |" in rows[2]
    assert "| < 1% |" in rows[2]
    assert "~: a part of the work was done" in text


def test_models_are_compared_op_by_op(write_run):
    text = section(
        *read_run(
            write_run(
                benchmark("ours", 0.10, op="decode", case="4B, original", dtype=""),
                benchmark("ours", 0.08, op="decode", case="4B, mobile", dtype=""),
                benchmark("ours", 20.0, op="vision tower", case="4B, original, 896 px", dtype=""),
                benchmark("ours", 8.0, op="vision tower", case="4B, mobile, 672 px", dtype=""),
                benchmark("ours", 1.0, op="prefill", case="4B, original", dtype=""),
            )
        )
    )
    assert "`4B, mobile` over `4B, original`, times as fast: decode 1.25, vision tower 2.50." in text
