"""The bench must report what its runs measured, and fail when one of them fails."""

from __future__ import annotations

import json

import pytest


def test_last_line_has_ratios_of_its_own_medians(run_script, fake_surgery, source):
    done = run_script(
        "bench/compress_ratio.py", source, "--executable", fake_surgery(), "--runs", 3, "--cold"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    medians = report["median_seconds"]
    assert report["source_file_bytes"] == 9000
    assert report["ratio_to_cp"] == pytest.approx(medians["compress"] / medians["cp"])
    assert report["ratio_to_cp_fsync"] == pytest.approx(medians["compress"] / medians["cp + fsync"])
    assert report["output_bytes_per_second"] == pytest.approx(8000 / medians["compress"])
    assert report["peak_anonymous_bytes"] == 1_000_000
    assert [len(seconds) for seconds in report["seconds"].values()] == [3, 3, 3, 0, 0]
    assert sorted(report["seconds"]["compress"])[1] == medians["compress"] > 0.08
    assert set(report["cold_seconds"]) == {"cp", "cp + fsync", "compress"}
    assert {path.name for path in source.parent.iterdir()} == {"model", "fake-surgery"}


def test_a_failing_command_stops_the_bench_with_its_message(run_script, fake_surgery, source):
    executable = fake_surgery()
    executable.write_text("#!/bin/sh\necho '[compress] disk full' >&2\nexit 2\n")
    done = run_script("bench/compress_ratio.py", source, "--executable", executable, "--runs", 1)
    assert done.returncode == 1
    assert "need exit code 0, got 2" in done.stderr
    assert "[compress] disk full" in done.stderr


def test_a_folder_without_weights_is_refused(run_script, fake_surgery, source):
    (source / "model.safetensors").unlink()
    done = run_script("bench/compress_ratio.py", source, "--executable", fake_surgery())
    assert done.returncode == 1
    assert "need a folder with *.safetensors" in done.stderr
