"""Names, notes and model output are hostile: they stay text, in the page and in the card."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from compressing import read_json
from PIL import Image
from report_pages import Page

from gemma_surgery.report.activity import Activity, LayerActivity
from gemma_surgery.report.answers import Answer, thumbnail
from gemma_surgery.report.card import MARK, render_card
from gemma_surgery.report.differences import common, marked
from gemma_surgery.report.material import Material
from gemma_surgery.report.measurements import Search, SearchPoint, Sensitivity
from gemma_surgery.report.outcome import read_outcome, recipe_as_toml
from gemma_surgery.report.page import render_page
from gemma_surgery.report.wording import visible

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onload="alert(1)" x=\'',
    "</title></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% include 'style.css' %}",
    "-->]]><!-- & &lt; &#60;",
    "\x00\x07\x1b[31m\x7f\x85\u202eevil\u2066",
    "``` `code` | cell | <b>bold</b> [link](javascript:alert(1))",
)


@pytest.fixture
def page_of(tmp_path: Path):
    def page_of(material: Material) -> Page:
        path = tmp_path / "page.html"
        path.write_text(render_page(material), "utf-8")
        return Page(path)

    return page_of


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_everywhere(page_of, report, mobile, evaluation, tmp_path, text) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    for file in mobile.iterdir():
        if file.name != "surgery.json":
            (folder / file.name).symlink_to(file)
    manifest = read_json(mobile / "surgery.json")
    manifest["recipe"] = {"name": text, "steps": [{"step": "quantize", "keep": [text], text: 1}]}
    manifest["steps"][0] |= {"step": text, "notes": [text], "table": [["pass", "a", "b"], [text, "1", "1"]]}
    manifest["files"] = {text: text}
    manifest["plan_sha256"] = text
    (folder / "surgery.json").write_text(json.dumps(manifest))
    document = read_json(evaluation) | {"notes": [text], "impossible_forms": [text]}
    document["protocol"]["name"] = text
    document["steps"][0]["step"] = text
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(document))
    search = tmp_path / "search.json"
    point = {"bytes": 1, "kl": 1, "label": text, "pareto": True}
    sensitive = {"step": text, "layer": 1, "width": None, "kl": 0.1}
    search.write_text(json.dumps({"points": [point], "sensitivity": [sensitive]}))
    clean = report("--evaluation", evaluation)
    page = report("--evaluation", path, "--search", search, folder=folder)
    assert [e.name for e in page.elements if e.name in ("script", "img", "iframe", "object")] == []
    assert len(page.named("style")) == len(clean.named("style")) == 1
    assert {name for e in page.elements for name in e.attributes if name.startswith("on")} == set()
    assert visible(text) in page.html.replace("&lt;", "<").replace("&gt;", ">").replace("&#34;", '"').replace(
        "&#39;", "'"
    ).replace("&amp;", "&")


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answers_are_escaped_and_no_code_runs(page_of, mobile, text) -> None:
    answers = (Answer(text, text, f"{text} more"),)
    page = page_of(Material(read_outcome(mobile), answers=answers, reference=text, reference_is_source=True))
    assert page.named("script") == []
    assert [e.text for e in page.with_class("prompt")] == [visible(text)]
    assert [e.text for e in page.with_class("answer")] == [visible(text), visible(f"{text} more")]
    policy = next(e for e in page.named("meta") if e.attributes.get("http-equiv"))
    assert policy.attributes["content"].startswith("default-src 'none'; img-src data:; style-src 'sha256-")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_card_has_no_markup_of_its_own(mobile, text) -> None:
    outcome = read_outcome(mobile)
    object.__setattr__(outcome, "recipe_name", text)
    object.__setattr__(outcome, "recipe_toml", text)
    card = render_card(Material(outcome, base_model=text, license="gemma"))
    _, front, body = card.split("---\n", 2)
    assert json.loads(front.splitlines()[1].removeprefix("base_model: ")) == visible(text)
    before, fence_and_rest = body.split("`recipe.toml`:")
    assert "<" not in before.replace("\\<", "").replace(MARK, "")
    assert "](" not in before.replace("\\]", "")
    assert "`" not in before.replace("\\`", "")
    fence = fence_and_rest.strip().split("toml\n")[0]
    assert set(fence) == {"`"} and fence not in text


def test_a_picture_never_takes_more_than_its_room(tmp_path) -> None:
    path = tmp_path / "noise.png"
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 4), np.uint8)
    Image.fromarray(noise).save(path)
    assert len(thumbnail(path)) <= 40_000
    assert len(thumbnail(path, 40)) <= 10_000


def test_a_page_of_the_largest_model_stays_below_a_megabyte(page_of, mobile) -> None:
    rng = np.random.default_rng(0)
    layers = tuple(
        LayerActivity(index, np.sort(rng.lognormal(-1, 1, 21_504))[::-1], 0.1) for index in range(62)
    )
    points = tuple(SearchPoint(1e9 + 1e7 * i, 1 / (i + 1), f"recipe {i}", i % 3 == 0) for i in range(150))
    steps = tuple(
        Sensitivity("quantize", layer, width, 0.1, 1e6) for layer in range(62) for width in (2, 3, 4, 5, 6, 8)
    )
    words = " ".join(f"word{i % 97}" for i in range(160))
    picture = "data:image/jpeg;base64," + "A" * 33_000
    page = page_of(
        Material(
            read_outcome(mobile),
            activity=Activity(layers, 10_000, True, "0" * 64),
            search=Search(points, steps),
            answers=tuple(Answer(words, words, words[::-1]) for _ in range(12)),
            image_answers=tuple(Answer(words, words, words[::-1], picture) for _ in range(12)),
            multimodal=True,
        )
    )
    assert len(page.html.encode()) < 1_000_000


def test_differences_are_marked_and_nothing_is_lost() -> None:
    before, after = marked("I'm on the left, near", "I's on a left,  near it")
    assert before == (
        "<del>I&#39;m</del><span> </span><span>on </span><del>the</del><span> </span><span>left, near</span>"
    )
    assert after.count("<ins>") == 3 and "<ins>I&#39;s</ins>" in after and "left,  near" in after
    assert marked(" a\n", " a\n") == ("<span> a\n</span>",) * 2
    looping = "word " * 10_000
    assert marked(looping, "")[0].endswith("[…]</del>")
    assert marked(looping, looping)[1].count("<ins>") == 0


def test_the_common_words_are_as_many_as_the_plain_table_says() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one, other = (rng.choices("abcd", k=rng.randrange(9)) for _ in range(2))
        lengths = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
        for i, word in enumerate(one):
            for j, its in enumerate(other):
                best = max(lengths[i][j + 1], lengths[i + 1][j])
                lengths[i + 1][j + 1] = lengths[i][j] + 1 if word == its else best
        pairs = common(one, other)
        assert len(pairs) == lengths[-1][-1] and all(one[i] == other[j] for i, j in pairs)
        assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(pairs))


def test_recipes_are_written_as_toml_whatever_they_hold() -> None:
    import tomllib

    steps = [
        {"step": "quantize", "rules": [{"match": '*"\\.é\x7f\n', "bits": 6, "keep": True}], "x": [0.5, 1]},
        {"step": "prune_vocabulary", "a key": "b"},
    ]
    assert tomllib.loads(recipe_as_toml({"name": "n", "profile": "p", "steps": steps})) == {
        "profile": "p",
        "steps": steps,
    }
