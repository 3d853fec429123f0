"""Descriptions are compared by what they say about the picture."""

from __future__ import annotations

import pytest

from gemma_surgery.generation.loading import load
from gemma_surgery.quality.images import (
    Description,
    agreement,
    agreement_report,
    content_words,
    describe_images,
    describe_scenes,
)


def test_words_that_say_nothing_do_not_count() -> None:
    assert content_words("The image shows a red Circle, and it's on the left.") == {"red", "circle", "left"}
    assert agreement("There is a red circle.", "The picture shows the red circle") == 1.0


def test_agreement_is_the_f1_of_the_words() -> None:
    assert agreement("red circle left", "red square left") == pytest.approx(2 / 3)
    assert agreement("red circle", "blue square") == 0.0
    assert agreement("", "") == 1.0 and agreement("", "red") == 0.0


def test_a_report_without_a_reference_has_loops_and_no_agreement() -> None:
    report = agreement_report([Description("red", False), Description("red red", True)])
    assert report.share is None and report.to_json()["loops"] == 1


def test_the_same_model_agrees_with_itself(dense, scenes) -> None:
    said = describe_images(*load(dense), scenes)
    report = agreement_report(said, said)
    assert report.share == 1.0 and report.to_json()["least"] == 1.0
    assert [each.text for each in said] == [each.text for each in scenes]


def test_facts_count_what_is_named_and_what_is_not(dense, mobile) -> None:
    for folder in (dense, mobile):
        report = describe_scenes(*load(folder), 3)
        assert 0 < report.right <= report.total and report.scenes == 3
        assert report.share > 0.6 and report.loops == 0
