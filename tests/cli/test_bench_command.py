"""`bench`: a row per workload and model, numbers that add up, ratios of the same run."""

from __future__ import annotations

import json
import re

import pytest

from gemma_surgery.measurement import bandwidth

KEYS = [
    *("model", "images", "prompt_tokens", "generation_tokens", "num_trials"),
    *("prompt_tps", "prompt_tps_min", "prompt_tps_max"),
    *("generation_tps", "generation_tps_min", "generation_tps_max"),
    *("vision_seconds", "peak_memory_bytes"),
    *("weight_bytes_per_token", "kv_bytes_per_token", "bytes_per_token", "bytes_per_second"),
    *("bandwidth_bytes_per_second", "bandwidth_fraction"),
]
SMALL = ("-p", 20, "-g", 4, "-n", 2)


@pytest.fixture(autouse=True)
def _small_probe(monkeypatch) -> None:
    monkeypatch.setattr(bandwidth, "available_bytes", lambda: 1 << 28)
    monkeypatch.setattr(bandwidth, "last_cache_bytes", lambda: 1 << 25)


def rows(done) -> list[dict]:
    assert done.code == 0, done.stderr
    return [json.loads(line) for line in done.lines]


def test_json_has_one_object_per_row(cli, tiny) -> None:
    done = cli("bench", tiny, *SMALL, "-p", 30, "--images", 1, "--images", 0, "--json", "--quiet")
    found = rows(done)
    assert [(row["images"], row["prompt_tokens"]) for row in found] == [(0, 20), (0, 30), (1, 38), (1, 48)]
    for row in found:
        assert list(row) == KEYS
        assert (row["model"], row["num_trials"], row["generation_tokens"]) == ("original", 2, 4)
        assert row["prompt_tps_min"] <= row["prompt_tps"] <= row["prompt_tps_max"]
        assert row["generation_tps_min"] <= row["generation_tps"] <= row["generation_tps_max"]
        assert (row["vision_seconds"] > 0) == (row["images"] > 0)
        assert row["peak_memory_bytes"] > row["weight_bytes_per_token"]
        assert row["bytes_per_token"] == row["weight_bytes_per_token"] + row["kv_bytes_per_token"]
        speed = row["bytes_per_token"] * row["generation_tps"]
        assert row["bytes_per_second"] == pytest.approx(speed, rel=1e-3)
        share = row["bytes_per_second"] / row["bandwidth_bytes_per_second"]
        assert row["bandwidth_fraction"] == pytest.approx(share, abs=1e-6)
    assert len({row["bandwidth_bytes_per_second"] for row in found}) == 1
    # Text comes first, while the vision tower is not loaded.
    assert found[1]["peak_memory_bytes"] < found[2]["peak_memory_bytes"]


def test_against_gives_ratios_of_the_first_model(cli, tiny, small_mobile) -> None:
    done = cli("bench", small_mobile, "--against", tiny, *SMALL, "--images", 1, "--json")
    mine, its = rows(done)
    assert (mine["model"], its["model"], mine["against"]) == ("mobile", "original", "original")
    assert "ratios" not in its
    ratios = mine["ratios"]
    assert set(ratios) == {
        *("prompt_tps", "prompt_seconds", "vision_seconds", "generation_tps"),
        *("bytes_per_token", "peak_memory_bytes"),
    }
    for key in ("bytes_per_token", "peak_memory_bytes"):
        assert ratios[key] == pytest.approx(mine[key] / its[key], abs=1e-5) and ratios[key] < 1
    for key in ("prompt_tps", "generation_tps"):
        least, most = mine[f"{key}_min"] / its[f"{key}_max"], mine[f"{key}_max"] / its[f"{key}_min"]
        assert least * 0.999 <= ratios[key] <= most * 1.001


def test_table_fits_and_says_what_the_limit_is(cli, tiny, small_mobile) -> None:
    done = cli("bench", tiny, "--against", small_mobile, *SMALL, "--images", 0, "--images", 1, "--quiet")
    assert done.code == 0 and done.stderr == ""
    heading, *body = done.lines
    assert heading.split()[:3] == ["model", "images", "prompt"] and "of limit" in heading
    assert [line.split()[0] for line in body[:4]] == ["original", "mobile"] * 2
    assert all(len(line) <= 110 for line in [heading, *body[:4]])
    assert len({line.rindex(line.split()[-1]) for line in body[:4]}) == 1
    number = r"\d+\.\d+x"
    assert re.fullmatch(
        f"original / mobile, 20 text tokens: prompt {number}, generation {number},"
        f" bytes per token {number}, peak memory {number}",
        body[4],
    )
    assert body[5].startswith("original / mobile, 20 text tokens, 1 image: prompt ")
    assert re.fullmatch(r"MLX \S+ on the (CPU|GPU), float32; memory read limit \S+ GB/s \(.+ GiB\)", body[6])
    assert len(body) == 7


def test_a_probe_that_fits_the_caches_is_admitted(cli, tiny, monkeypatch) -> None:
    monkeypatch.setattr(bandwidth, "last_cache_bytes", lambda: 1 << 26)
    done = cli("bench", tiny, "-p", 4, "-g", 2, "-n", 1, "--quiet")
    assert done.code == 0 and done.stderr.startswith("note: too little memory is free to get past the caches")


def test_models_of_one_name_are_told_apart(cli, tiny, tiny_dense) -> None:
    done = cli("bench", tiny, "--against", tiny_dense, "-p", 4, "-g", 2, "-n", 1, "--json", "--quiet")
    assert [row["model"] for row in rows(done)] == [str(tiny), str(tiny_dense)]


def test_trials_are_reported_to_stderr(cli, tiny) -> None:
    done = cli("bench", tiny, *SMALL, "--json")
    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["Warm-up", "Trial 1", "Trial 2"]
    assert "prompt_tps=" in lines[1] and "peak_memory=" in lines[1]


def test_image_files_make_a_row_of_their_own(cli, tiny, pictures) -> None:
    options = [argument for path in pictures for argument in ("--image", path)]
    found = rows(cli("bench", tiny, *SMALL, *options, "--json", "--quiet"))
    assert [(row["images"], row["prompt_tokens"]) for row in found] == [(0, 20), (2, 56)]


def test_weights_stay_as_they_are_stored_whatever_the_dtype(cli, tiny_dense) -> None:
    def weights(dtype: str) -> int:
        done = cli("bench", tiny_dense, "-p", 4, "-g", 2, "-n", 1, "--json", "--quiet", "--dtype", dtype)
        return rows(done)[0]["weight_bytes_per_token"]

    assert weights("float32") == weights("bfloat16")


MISTAKES: dict[str, tuple[list[object], str]] = {
    "no model": ([], "need a model, got none"),
    "no such model": (["nowhere"], "nowhere"),
    "no such other model": (["TINY", "--against", "nowhere"], "nowhere"),
    "images for a text-only folder": (["LANGUAGE", "--images", 1], "need a vision tower for images"),
    "no such image": (["TINY", "--image", "none.png"], "none.png"),
    "too long": (["TINY", "-p", 131_072], "within the 131,072 tokens of the context"),
    "a dtype that overflows": (["TINY", "--dtype", "float16"], "overflows"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_before_anything_is_measured(cli, tiny, text_only, case) -> None:
    arguments, message = MISTAKES[case]
    places = {"TINY": tiny, "LANGUAGE": text_only}
    done = cli("bench", *[places.get(str(argument), argument) for argument in arguments])
    assert done.code == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: [")
    assert len(done.stderr.splitlines()) <= 2
