"""`generate`: what it prints is what the library generates, and every mistake is one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from interrupting import INTERRUPTIBLE, interrupt_after
from PIL import Image

import gemma_surgery
from gemma_surgery.generation.prompt import build_prompt

KEYS = [
    "text",
    "prompt_tokens",
    "prompt_tps",
    "generation_tokens",
    "generation_tps",
    "peak_memory_bytes",
    "finish_reason",
]
RULE = "=========="


@pytest.fixture(scope="session")
def expected(tiny: Path) -> str:
    """What the library answers to `Hello` in 12 tokens."""
    model, tokenizer = gemma_surgery.load(tiny)
    prompt = build_prompt(tokenizer, model.config, "Hello")
    return gemma_surgery.generate(model, tokenizer, prompt, max_tokens=12).text


def test_output_has_the_lines_of_mlx_lm(cli, tiny, expected) -> None:
    done = cli("generate", tiny, "--prompt", "Hello", "-m", 12)
    assert done.code == 0 and done.stderr == ""
    head, text, tail = done.stdout.split(f"{RULE}\n")
    assert head == "" and text == f"{expected}\n" and expected
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf"Prompt: \d+ tokens, {number} tokens-per-sec\n"
        rf"Generation: 12 tokens, {number} tokens-per-sec\n"
        rf"Peak memory: {number} GB\n",
        tail,
    )


def test_quiet_prints_the_text_alone(cli, tiny, expected) -> None:
    done = cli("generate", "--model", tiny, "-p", "Hello", "-m", 12, "--quiet")
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_json_has_exactly_the_agreed_keys(cli, tiny, expected) -> None:
    done = cli("generate", tiny, "-p", "Hello", "-m", 12, "--json")
    assert list(done.document) == KEYS
    assert done.document["text"] == expected
    assert (done.document["generation_tokens"], done.document["finish_reason"]) == (12, "length")
    assert done.document["prompt_tps"] > 0 and done.document["peak_memory_bytes"] > 1_000_000
    # Statistics stay, the text is not streamed.
    assert done.lines[0] == f"Prompt: {done.document['prompt_tokens']} tokens, " + (
        f"{done.document['prompt_tps']:.3f} tokens-per-sec"
    )
    quiet = cli("generate", tiny, "-p", "Hello", "-m", 12, "--json", "--quiet")
    assert len(quiet.lines) == 1 and quiet.document["text"] == expected


@pytest.mark.parametrize("arguments", [["--prompt", "-"], []])
def test_prompt_comes_from_stdin(cli, tiny, expected, arguments) -> None:
    done = cli("generate", tiny, *arguments, "-m", 12, "--quiet", stdin="Hello")
    assert done.stdout == f"{expected}\n"


def test_escapes_are_expanded_in_the_option_and_not_on_stdin(cli, tiny) -> None:
    def tokens(*arguments: str, stdin: str = "") -> int:
        done = cli("generate", tiny, "--ignore-chat-template", *arguments, "-m", 1, "--json", stdin=stdin)
        return done.document["prompt_tokens"]

    expanded = tokens("-p", r"a\nb\tc")
    assert expanded == tokens(stdin="a\nb\tc") < tokens(stdin=r"a\nb\tc")


def test_without_a_chat_template_the_text_is_all_there_is(cli, tiny) -> None:
    model, tokenizer = gemma_surgery.load(tiny)
    done = cli("generate", tiny, "-p", "Hello", "--ignore-chat-template", "-m", 5, "--json")
    assert done.document["text"] == gemma_surgery.generate(model, tokenizer, "Hello", max_tokens=5).text


def test_sampling_is_repeatable_with_a_seed(cli, tiny, expected) -> None:
    def sampled(seed: int) -> str:
        options = ("--temp", 1.5, "--top-p", 0.95, "--top-k", 200, "--min-p", 0.001, "--seed", seed)
        return cli("generate", tiny, "-p", "Hello", "-m", 12, "--quiet", *options).stdout

    assert sampled(1) == sampled(1) != sampled(2)
    assert sampled(1) != f"{expected}\n"


def test_a_repetition_penalty_changes_the_answer(cli, tiny, expected) -> None:
    options = ("--repetition-penalty", 1.8, "--repetition-context-size", 50)
    assert cli("generate", tiny, "-p", "Hello", "-m", 12, "--quiet", *options).stdout != f"{expected}\n"


def test_a_stop_string_ends_the_answer(cli, tiny, expected) -> None:
    stop = expected[len(expected) // 2 :][:3]
    done = cli("generate", tiny, "-p", "Hello", "-m", 12, "--stop", "nowhere", "--stop", stop, "--json")
    assert done.document["text"] == expected[: expected.index(stop)]
    assert done.document["finish_reason"] == "stop"


def test_nothing_generated_is_said(cli, tiny, expected) -> None:
    done = cli("generate", tiny, "-p", "Hello", "-m", 12, "--stop", expected[0])
    assert done.stdout == f"{RULE}\n\n{RULE}\nNo text generated for this prompt\n"


def test_a_draft_model_changes_nothing_but_the_speed(cli, tiny, expected) -> None:
    done = cli("generate", tiny, "-p", "Hello", "-m", 12, "--draft-model", tiny, "--num-draft-tokens", 2)
    assert done.stdout.split(f"{RULE}\n")[1] == f"{expected}\n"
    counts = re.fullmatch(r"Draft: (\d+) of (\d+) proposed tokens accepted, (.+)%", done.lines[-1])
    # A model that drafts for itself is nearly always right.
    assert counts and int(counts[1]) >= 0.5 * int(counts[2]) > 0
    assert float(counts[3]) == pytest.approx(100 * int(counts[1]) / int(counts[2]), abs=0.06)
    document = cli("generate", tiny, "-p", "Hello", "-m", 12, "--draft-model", tiny, "--json").document
    assert list(document) == [*KEYS, "drafted", "accepted"]


def test_a_draft_model_gets_images_in_its_own_size(cli, tiny, small_mobile, pictures) -> None:
    question = ("generate", tiny, "-p", "What is it?", "--image", pictures[0], "-m", 8, "--quiet")
    plain = cli(*question)
    assert plain.code == 0 and cli(*question, "--draft-model", small_mobile).stdout == plain.stdout


def test_images_come_before_the_text_and_are_seen(cli, tiny, pictures) -> None:
    model, tokenizer = gemma_surgery.load(tiny)
    prompt = build_prompt(tokenizer, model.config, "What?", [str(path) for path in pictures])
    answer = gemma_surgery.generate(model, tokenizer, prompt, max_tokens=8)
    options = [argument for path in pictures for argument in ("--image", path)]
    document = cli("generate", tiny, "-p", "What?", "-m", 8, "--json", *options).document
    assert (document["text"], document["prompt_tokens"]) == (answer.text, len(prompt.tokens))
    assert document["prompt_tokens"] > 2 * model.config.vision.tokens_per_image


def test_pan_and_scan_adds_pieces_of_a_wide_image(cli, tiny, tmp_path) -> None:
    path = tmp_path / "wide.png"
    Image.new("RGB", (1200, 500), "red").save(path)
    question = ("generate", tiny, "-p", "What?", "-m", 1, "--image", path, "--json")
    assert cli(*question, "--pan-and-scan").document["prompt_tokens"] > (
        cli(*question).document["prompt_tokens"] + 16
    )


def test_a_loop_is_reported_and_ended_on_request(cli, tiny) -> None:
    question = ("generate", tiny, "-p", "Hello", "-m", 400, "--repetition-penalty", 0.05)
    done = cli(*question, "--json")
    assert list(done.document) == [*KEYS, "repetition"]
    assert "note: the answer fell into a loop at token" in done.stderr
    ended = cli(*question, "--json", "--stop-on-repetition")
    assert ended.document["finish_reason"] == "repetition"
    assert ended.document["generation_tokens"] < done.document["generation_tokens"]
    assert "--stop-on-repetition" in done.stderr and "--stop-on-repetition" not in ended.stderr


def test_quantized_keys_and_values_run(cli, tiny) -> None:
    options = ("--kv-bits", 8, "--kv-group-size", 32, "--quantized-kv-start", 4, "--prefill-step-size", 7)
    document = cli("generate", tiny, "-p", "Hello there, you", "-m", 6, "--json", *options).document
    assert document["generation_tokens"] == 6


def test_the_dtype_is_that_of_activations(cli, tiny_dense) -> None:
    texts = []
    for dtype in ("float32", "bfloat16"):
        import mlx.core as mx

        model, tokenizer = gemma_surgery.load(tiny_dense, dtype=getattr(mx, dtype))
        prompt = build_prompt(tokenizer, model.config, "Hello")
        expected = gemma_surgery.generate(model, tokenizer, prompt, max_tokens=6).text
        done = cli("generate", tiny_dense, "-p", "Hello", "-m", 6, "--quiet", "--dtype", dtype)
        assert done.stdout == f"{expected}\n"
        texts.append(model.dtype)
    assert texts == [mx.float32, mx.bfloat16]


def test_a_saved_prompt_is_read_only_where_it_is_new(cli, tiny, tmp_path) -> None:
    file = tmp_path / "cache.safetensors"
    story = "The quick brown fox jumps over the lazy dog, and it isn't even tired. " * 5
    question = ("generate", tiny, "-m", 12, "--json")
    first = cli(*question, "-p", f"{story}Who jumps?", "--save-prompt-cache", file)
    assert first.document["text"] == cli(*question, "-p", f"{story}Who jumps?").document["text"]

    again = cli(*question, "-p", f"{story}Who jumps?", "--prompt-cache-file", file)
    assert again.document["text"] == first.document["text"]
    assert again.document["prompt_tokens"] == 1

    other = cli(*question, "-p", f"{story}What about the dog?", "--prompt-cache-file", file)
    fresh = cli(*question, "-p", f"{story}What about the dog?")
    assert other.document["text"] == fresh.document["text"]
    reused = int(re.search(r"prompt cache: (\d+) of \d+ tokens", other.stderr)[1])
    assert reused > 50
    assert other.document["prompt_tokens"] == fresh.document["prompt_tokens"] - reused

    drafted = cli(*question, "-p", f"{story}Who jumps?", "--prompt-cache-file", file, "--draft-model", tiny)
    assert drafted.document["text"] == first.document["text"] and drafted.document["drafted"] > 0


def test_a_saved_prompt_with_another_image_is_read_from_the_image_on(cli, tiny, pictures, tmp_path) -> None:
    file = tmp_path / "cache.safetensors"
    question = ("generate", tiny, "-m", 8, "--json", "-p", "What?")
    saved = cli(*question, "--image", pictures[0], "--save-prompt-cache", file)
    same = cli(*question, "--image", pictures[0], "--prompt-cache-file", file)
    assert (same.document["text"], same.document["prompt_tokens"]) == (saved.document["text"], 1)
    other = cli(*question, "--image", pictures[1], "--prompt-cache-file", file)
    assert other.document["text"] == cli(*question, "--image", pictures[1]).document["text"]
    assert other.document["prompt_tokens"] > 16


def test_a_saved_prompt_that_differs_too_far_back_is_read_anew(cli, tiny, tmp_path) -> None:
    file = tmp_path / "cache.safetensors"
    question = ("generate", tiny, "-m", 8, "--json")
    saved, other = ("The quick fox. " + word * 400 for word in (" red", " blue"))
    cli(*question, "-p", saved, "--save-prompt-cache", file)
    done = cli(*question, "-p", other, "--prompt-cache-file", file)
    # Local layers have dropped what was before their window and the slack.
    assert "prompt cache: 0 of " in done.stderr
    assert done.document["text"] == cli(*question, "-p", other).document["text"]


def test_a_prompt_cache_that_is_not_there_yet_is_mentioned(cli, tiny, tmp_path) -> None:
    done = cli("generate", tiny, "-p", "Hi", "-m", 1, "--prompt-cache-file", tmp_path / "none.safetensors")
    assert done.code == 0 and "does not exist yet" in done.stderr


def test_a_prompt_cache_of_another_checkpoint_is_refused(cli, tiny, tiny_dense, tmp_path) -> None:
    file = tmp_path / "cache.safetensors"
    assert cli("generate", tiny, "-p", "Hi", "-m", 1, "--save-prompt-cache", file).code == 0
    done = cli("generate", tiny_dense, "-p", "Hi", "--prompt-cache-file", file)
    assert done.code == 2 and "got one of another checkpoint" in done.stderr
    done = cli("generate", tiny, "-p", "Hi", "--prompt-cache-file", file, "--kv-bits", 8)
    assert done.code == 2 and "got them unquantized" in done.stderr


@pytest.fixture
def spoiled(tiny: Path, text_only: Path, pictures: tuple[Path, Path], tmp_path: Path) -> Path:
    """A folder of checkpoints and images that something is wrong with."""
    changes = {
        "short": lambda config: config["text_config"].update(max_position_embeddings=64),
        "wrong": lambda config: config["text_config"].update(intermediate_size=640),
    }
    for name, change in changes.items():
        shutil.copytree(tiny, tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        change(config)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    shutil.copytree(tiny, tmp_path / "mute")
    (tmp_path / "mute/tokenizer.json").unlink()
    (tmp_path / "language").symlink_to(text_only)
    (tmp_path / "tiny").symlink_to(tiny)
    data = pictures[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (8, 8)).save(tmp_path / "fine.png")
    return tmp_path


MISTAKES: dict[str, tuple[list[str], str]] = {
    "a truncated image": (["tiny", "-p", "x", "--image", "cut.png"], "need a whole image"),
    "a huge image": (["tiny", "-p", "x", "--image", "huge.png"], "got 400,000,000 in"),
    "an animated image": (["tiny", "-p", "x", "--image", "moving.gif"], "need a still image, got 2 frames"),
    "no such image": (["tiny", "-p", "x", "--image", "none.png"], "none.png"),
    "a prompt longer than the context": (
        ["short", "-p", "word " * 200],
        "need a prompt of fewer than 64 tokens, the context of the model",
    ),
    "an image for a text-only folder": (["language", "-p", "x", "--image", "fine.png"], "vision tower"),
    "a config that disagrees": (["wrong", "-p", "x"], "need tensors as `config.json` describes them"),
    "no tokenizer": (["mute", "-p", "x"], "need `tokenizer.json`"),
    "no model": (["-p", "x"], "need a model, got none"),
    "two models": (["tiny", "--model", "short", "-p", "x"], "need one model"),
    "nothing on stdin": (["tiny"], "got nothing on stdin"),
    "an empty prompt": (["tiny", "-p", ""], "need a prompt, got an empty one"),
    "a dtype that overflows": (["tiny", "-p", "x", "--dtype", "float16"], "overflows"),
    "unknown activations": (["tiny", "-p", "x", "--activations", "int4"], "full, int16, int8, got `int4`"),
    "no tokens": (["tiny", "-p", "x", "-m", "0"], "need 1 token or more"),
    "a top-p out of range": (["tiny", "-p", "x", "--temp", "1", "--top-p", "2"], "`top_p` above 0"),
    "bits that do not exist": (["tiny", "-p", "x", "--kv-bits", "7"], "need bits out of"),
    "a group that is too wide": (["tiny", "-p", "x", "--kv-bits", "4"], "need a group size that divides"),
    "a draft of another kind": (["tiny", "-p", "x", "--draft-model", "nowhere"], "nowhere"),
    "a draft that is blind": (
        ["tiny", "-p", "x", "--image", "fine.png", "--draft-model", "language"],
        "need a draft model that takes images",
    ),
    "no folder for the cache": (
        ["tiny", "-p", "x", "--save-prompt-cache", "no/c.safetensors"],
        "need a folder",
    ),
    "a cache that is none": (["tiny", "-p", "x", "--prompt-cache-file", "fine.png"], "fine.png"),
    "an image placeholder too many": (["tiny", "-p", "<start_of_image>"], "need as many images"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_sentence_with_exit_code_2(cli, spoiled, monkeypatch, case) -> None:
    arguments, message = MISTAKES[case]
    monkeypatch.chdir(spoiled)
    done = cli("generate", *arguments)
    assert done.code == 2 and done.stdout == ""
    assert message in done.stderr and done.stderr.startswith("error: [")
    assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr


def test_without_a_prompt_a_terminal_is_not_waited_for(cli, tiny) -> None:
    done = cli("generate", tiny, stdin=None)
    assert done.code == 2 and "need a prompt, got none" in done.stderr


def test_stdin_that_is_not_text_is_refused(cli, tiny) -> None:
    done = cli("generate", tiny, stdin=b"caf\xe9")
    assert done.code == 2 and "need a prompt in UTF-8" in done.stderr


def test_ctrl_c_prints_what_there_is_and_exits_with_130(tiny) -> None:
    # A penalty that rewards repetition: this answer has no end.
    arguments = ["-p", "Hello", "-m", "-1", "--repetition-penalty", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "generate", tiny, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    begun = b""
    while len(begun) < len(RULE) + 10:
        begun += os.read(process.stdout.fileno(), 100)
    process.send_signal(signal.SIGINT)
    rest, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.endswith(b"interrupted\n") and b"Traceback" not in stderr
    _, text, tail = (begun + rest).decode().split(f"{RULE}\n")
    assert text.endswith("\n") and "Generation: " in tail and "Peak memory: " in tail


def test_ctrl_c_leaves_json_of_what_there_is(cli, tiny, expected, monkeypatch) -> None:
    interrupt_after(3, monkeypatch)
    done = cli("generate", tiny, "-p", "Hello", "-m", 12, "--json")
    assert done.code == 130 and done.stderr == "interrupted\n"
    document = json.loads(done.lines[-1])
    assert (document["finish_reason"], document["generation_tokens"]) == ("interrupted", 3)
    assert document["text"] and expected.startswith(document["text"])


def test_ctrl_c_while_the_prompt_is_read_prints_no_statistics(cli, tiny, monkeypatch) -> None:
    interrupt_after(0, monkeypatch)
    done = cli("generate", tiny, "-p", "Hello", "--json")
    assert (done.code, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_commands_that_run_no_model_load_nothing_that_runs_models() -> None:
    heavy = ("gemma_surgery.generation", "gemma_surgery.models", "gemma_surgery.session", "PIL", "jinja2")
    program = f"import sys, gemma_surgery.cli; print([m for m in sys.modules if m.startswith({heavy})])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
