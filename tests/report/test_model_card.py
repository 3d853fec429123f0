"""The card: the page's figures, nothing unmeasured, and never over somebody else's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from compressing import read_json

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.verification import verify


@pytest.fixture
def output(mobile: Path, tmp_path: Path) -> Path:
    return shutil.copytree(mobile, tmp_path / "mobile")


def test_the_card_has_the_figures_of_the_page_and_no_others(
    report, output, original, evaluation, other_evaluations, guard, bench
) -> None:
    page = report(
        "--evaluation", other_evaluations[0], "--evaluation", guard,
        "--evaluation", evaluation, "--bench", bench, "--reference", original, "--answers", "1", "--card",
        folder=output,
    )  # fmt: skip
    card = (output / "README.md").read_text()
    front = card.split("---\n")[1]
    assert 'license: "apache-2.0"' in front and 'pipeline_tag: "image-text-to-text"' in front
    manifest = read_json(output / "surgery.json")
    assert f"{manifest['tensor_bytes']:,}" in card and manifest["source"]["fingerprint"] in card
    for row in page.table("figures")[1:]:
        name, figure = row[0], row[2]
        escaped = re.sub(r"([`*_<>|~$!])", r"\\\1", figure)
        assert f"{escaped} |" in card, name
    # Every figure of the tables of quality and speed is on the page.
    for row in re.findall(r"^\| (.+) \|$", card, re.MULTILINE):
        for cell in row.split(" | "):
            assert " ".join(cell.replace("\\", "").split()) in page.text, cell
    assert "Not measured" not in card and "0.0123" not in card and "0.0312" not in card
    assert "| 1 quantize |" in card
    assert verify(output).ok and open_checkpoint(output).fingerprint == open_checkpoint(output).fingerprint


def test_a_card_without_measurements_says_so(report, output) -> None:
    report("--card", folder=output)
    card = (output / "README.md").read_text()
    assert "Not measured here: quality, speed." in card
    assert "license" not in card.split("---\n")[1] and "## Quality" not in card and "## Speed" not in card


def test_only_own_cards_are_replaced(run, report, output, tmp_path) -> None:
    (output / "README.md").write_text("# mine\n")
    page = tmp_path / "refused.html"
    code, _, err = run("report", output, "-o", page, "--card")
    assert code == 2 and "README.md" in err and "`--overwrite`" in err
    assert (output / "README.md").read_text() == "# mine\n" and not page.exists()
    report("--card", "--overwrite", folder=output)
    first = (output / "README.md").read_text()
    report("--card", folder=output)
    assert (output / "README.md").read_text() == first
