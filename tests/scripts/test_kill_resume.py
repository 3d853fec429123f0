"""The crash test must pass a tool that keeps its promises and catch one that does not."""

from __future__ import annotations

import json

import pytest


def play(run_script, fake_surgery, source, fault, *extra):
    executable = fake_surgery(fault)
    return run_script("tools/kill_resume.py", source, "--executable", executable, "--runs", 6, *extra)


def test_a_tool_that_resumes_to_the_same_bytes_passes(run_script, fake_surgery, source):
    done = play(run_script, fake_surgery, source, "", "--hash-source")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["ok"]
    assert report["rounds"] == 6
    assert report["source_untouched"]
    assert done.stdout.count("same bytes") == 6


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        ("torn", "differs"),
        ("half target", "half a target after a kill"),
        ("refuses to resume", "nothing can be resumed"),
        ("leaves a file", "`left` is left beside the output"),
        ("writes to the source", "source: `config.json` differs"),
    ],
)
def test_a_broken_promise_is_reported_and_fails(run_script, fake_surgery, source, fault, complaint):
    done = play(run_script, fake_surgery, source, fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert complaint in done.stdout
    assert not json.loads(done.stdout.splitlines()[-1])["ok"]


def test_a_reference_run_that_fails_is_said(run_script, fake_surgery, source):
    executable = fake_surgery().with_name("absent")
    executable.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    executable.chmod(0o755)
    done = run_script("tools/kill_resume.py", source, "--executable", executable)
    assert done.returncode == 1
    assert "the undisturbed run failed: exit code 3: broken" in done.stderr
