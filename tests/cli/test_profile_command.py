"""`profile`: what it measures is in the file, the table and the JSON; every mistake is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemma_surgery.calibration.profile import Profile, read_profile
from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.demo_model import demo_model_path

NUM_LAYERS, WIDTH = 8, 512
KEYS = [
    "profile",
    "sha256",
    "samples",
    "tokens",
    "chat",
    "ranks",
    "threshold",
    "layers",
    "seconds",
    "resumed_layers",
]


@pytest.fixture(scope="module")
def model() -> Path:
    return demo_model_path("4bit")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "profile.safetensors"


def opened(model: Path, path: Path) -> Profile:
    return read_profile(path, open_checkpoint(model).fingerprint)


def activations(profile: Profile, layer: int) -> np.ndarray:
    return profile.activation(f"language_model.model.layers.{layer}.mlp.", WIDTH)


def test_the_table_has_a_row_per_layer_with_what_the_profile_says(cli, model, output) -> None:
    done = cli("profile", model, "-o", output, "--samples", 3, "-m", 60, "--threshold", 0.3)
    assert done.code == 0, done.stderr
    rows = [line.split("│")[1:-1] for line in done.lines if line.startswith("│")]
    profile = opened(model, output)
    assert len(rows) == NUM_LAYERS
    for index, (layer, influence, activation, below, strip) in enumerate(rows):
        values = activations(profile, index)
        prefix = f"language_model.model.layers.{index}."
        assert (int(layer), influence.strip()) == (index, f"{profile.block_influence(prefix):.4f}")
        assert activation.strip() == f"{values.mean():.3f}"
        assert below.strip() == f"{(values < 0.3).mean():.0%}"
        assert strip[1:].strip(" ░▒▓█") == "" and "▒" in strip
    assert "below 0.3" in done.stdout
    assert "measured on 3 samples, 180 tokens, as chat turns" in done.stdout
    assert done.lines[-1] == f"written: {output}"
    assert "profiling: " in done.stderr


def test_json_is_one_line_with_the_same_numbers(cli, model, output) -> None:
    done = cli("profile", model, "-o", output, "--samples", 3, "-m", 60, "--json")
    assert len(done.lines) == 1 and done.stderr == ""
    document, profile = done.document, opened(model, output)
    assert list(document) == KEYS
    assert (document["samples"], document["tokens"], document["chat"]) == (3, 180, True)
    assert (document["ranks"], document["resumed_layers"], document["threshold"]) == (1, 0, 0.5)
    assert (document["profile"], document["sha256"]) == (str(output), profile.sha256)
    assert [layer["layer"] for layer in document["layers"]] == list(range(NUM_LAYERS))
    for layer in document["layers"]:
        values = activations(profile, layer["layer"])
        assert layer["mean_abs_activation"] == pytest.approx(values.mean())
        assert layer["below_threshold"] == (values < 0.5).mean()
    assert set(document["seconds"]) == {"embeddings and vision", "decoder layers"}


def test_raw_text_is_fed_as_it_is(cli, model, output, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("The red circle is above the blue square. " * 40)
    arguments = ["profile", model, "--calibration", tmp_path / "text.txt", "--raw", "--json"]
    document = cli(*arguments, "-o", output).document
    assert document["chat"] is False
    chat = cli(*arguments[:-2], "--json", "-o", tmp_path / "chat").document
    assert chat["chat"] is True and chat["sha256"] != document["sha256"]


def test_images_are_shown_besides_the_texts(cli, model, output, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (64, 64), "green").save(tmp_path / "images/green.png")
    done = cli("profile", model, "-o", output, "--samples", 2, "--images", tmp_path / "images", "--json")
    assert done.document["samples"] == 3
    names = opened(model, output).header.tensors
    assert "vision_tower.vision_model.encoder.layers.2.mlp.fc2.input_fluctuation" in names


def test_hessians_are_there_where_they_were_asked_for(cli, model, output, tmp_path) -> None:
    arguments = ["profile", model, "--samples", 2, "-m", 30, "--quiet"]
    cli(*arguments, "-o", output, "--hessians")
    cli(*arguments, "-o", tmp_path / "one", "--hessian-of", "*.5.self_attn.o_proj")
    layers = [f"language_model.model.layers.{index}" for index in range(NUM_LAYERS)]
    every, one = opened(model, output), opened(model, tmp_path / "one")
    assert all(every.has_hessian(f"{layer}.mlp.down_proj") for layer in layers)
    assert not any(one.has_hessian(f"{layer}.mlp.down_proj") for layer in layers)
    assert [layer for layer in layers if one.has_hessian(f"{layer}.self_attn.o_proj")] == [layers[5]]


def test_the_heatmap_is_drawn_beside_the_profile(cli, model, output, tmp_path) -> None:
    done = cli("profile", model, "-o", output, "--samples", 1, "--heatmap", tmp_path / "map.png", "--quiet")
    assert done.code == 0
    with Image.open(tmp_path / "map.png") as image:
        assert image.width > 960 and image.height > NUM_LAYERS * 10


def test_an_existing_profile_is_replaced_only_on_request(cli, model, output) -> None:
    output.write_bytes(b"precious")
    refused = cli("profile", model, "-o", output, "--samples", 1)
    assert_one_line(refused, f"need a new file, got `{output}` which exists", hint=True)
    assert output.read_bytes() == b"precious"
    assert cli("profile", model, "-o", output, "--samples", 1, "--overwrite", "--quiet").code == 0
    assert opened(model, output).num_tokens > 0


def assert_one_line(done, message: str, *, hint: bool = False) -> None:
    """One sentence to stderr, nothing to stdout, exit code 2."""
    lines = done.stderr.strip().splitlines()
    assert (done.code, done.stdout) == (2, "")
    assert lines[0].startswith("error: [") and message in lines[0]
    assert len(lines) == (2 if hint else 1) and all(line.startswith("hint: ") for line in lines[1:])


BAD_DATA = {
    "broken.jsonl": '{"text": "whole"}\n{"text": ',
    "wrong.jsonl": json.dumps({"words": "no text"}),
    "empty.txt": "  \n",
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_a_bad_data_file_is_one_line(cli, model, output, tmp_path, name: str) -> None:
    (tmp_path / name).write_text(BAD_DATA[name])
    done = cli("profile", model, "-o", output, "--calibration", tmp_path / name)
    assert done.code == 2 and done.stdout == ""
    assert name in done.stderr.splitlines()[0] and done.stderr.startswith("error: [")
    assert not output.exists()


def test_data_that_is_not_there_is_one_line(cli, model, output, tmp_path) -> None:
    done = cli("profile", model, "-o", output, "--calibration", tmp_path / "none.txt")
    assert done.code == 2 and "none.txt" in done.stderr.splitlines()[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("map.jpg2", "need a name that ends in `.png`"), ("none/map.png", "need a folder `")],
)
def test_a_heatmap_that_cannot_be_written_is_refused_before_anything_is_measured(
    cli, model, output, tmp_path, name: str, message: str
) -> None:
    done = cli("profile", model, "-o", output, "--heatmap", tmp_path / name)
    assert_one_line(done, message)
    assert not output.exists()


def test_a_pattern_without_a_layer_is_one_line(cli, model, output) -> None:
    done = cli("profile", model, "-o", output, "--samples", 1, "--hessian-of", "*.gate_proj", "--quiet")
    assert_one_line(done, "got none by `*.gate_proj`")


def test_images_for_a_text_only_model_are_one_line(cli, text_only, output, tmp_path) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    done = cli("profile", text_only, "-o", output, "--samples", 1, "--images", tmp_path)
    assert done.code == 2 and "vision tower" in done.stderr.splitlines()[0]
