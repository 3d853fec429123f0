"""`chat`: every answer is the one that the whole conversation would get, and a mistake ends nothing."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from interrupting import INTERRUPTIBLE, interrupt_after

import gemma_surgery
from gemma_surgery.generation.prompt import build_prompt

TOKENS = 8


@pytest.fixture(scope="session")
def answers(tiny: Path):
    """`answers(messages, system)`: what the library says to a whole conversation, without any cache."""
    model, tokenizer = gemma_surgery.load(tiny)

    def answer(messages: list[dict[str, Any]], system: str | None = None) -> str:
        prompt = build_prompt(tokenizer, model.config, messages, system=system)
        return gemma_surgery.generate(model, tokenizer, prompt, max_tokens=TOKENS).text

    def conversation(*texts: Any, system: str | None = None) -> list[str]:
        messages: list[dict[str, Any]] = []
        for text in texts:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": answer(messages, system)})
        return [message["content"] for message in messages[1::2]]

    return conversation


@pytest.fixture
def chat(cli, tiny):
    """`chat(lines...)`: a whole session with its lines from stdin."""

    def run(*lines: str, options: tuple[object, ...] = (), model: Path = tiny):
        return cli("chat", model, "-m", TOKENS, *options, stdin="".join(f"{line}\n" for line in lines))

    return run


def printed(*texts: str) -> str:
    return "".join(f"{text}\n" for text in texts)


def test_answers_are_those_of_the_whole_conversation(chat, answers) -> None:
    done = chat("Hello there.", "And then?", "It's a red circle.", "/stats")
    expected = answers("Hello there.", "And then?", "It's a red circle.")
    assert done.code == 0
    assert done.stdout.startswith(printed(*expected))
    assert len(set(expected)) > 1


def test_what_was_read_is_not_read_again(chat) -> None:
    lines = chat("The quick brown fox jumps over the lazy dog. " * 3, "/stats", "And then?", "/stats").lines

    def numbers(start: str) -> list[int]:
        return [int(line.split()[1].replace(",", "")) for line in lines if line.startswith(start)]

    (first, second), reused = numbers("Prompt: "), numbers("Reused: ")
    assert reused[0] == 0 and reused[1] >= first > 40
    assert numbers("Context: ") == [first + TOKENS, reused[1] + second + TOKENS]


def test_there_are_no_prompt_marks_without_a_terminal(chat) -> None:
    done = chat("Hello")
    assert ">>>" not in done.stdout + done.stderr


def test_the_system_prompt_is_given_set_and_removed(chat, answers) -> None:
    done = chat("Hi", options=("--system-prompt", "Be brief."))
    assert done.stdout == printed(*answers("Hi", system="Be brief."))
    done = chat("/system Be brief.", "Hi", "/reset", "/system", "Hi")
    assert done.stdout == printed(*answers("Hi", system="Be brief."), *answers("Hi"))


def test_reset_forgets_the_conversation(chat, answers) -> None:
    done = chat("Hello", "/reset", "And then?", "/stats")
    assert done.stdout.startswith(printed(*answers("Hello"), *answers("And then?")))


def test_images_go_with_the_next_message_and_stay_in_the_conversation(chat, answers, pictures) -> None:
    first, second = map(str, pictures)
    done = chat(f"/image {first}", f"/image '{second}'", "What are they?", "And then?")
    parts = [{"type": "image", "image": path} for path in (first, second)]
    expected = answers([*parts, {"type": "text", "text": "What are they?"}], "And then?")
    assert done.stdout == printed(*expected)
    assert expected != answers("What are they?", "And then?")


def test_a_path_may_have_spaces(chat, answers, pictures, tmp_path) -> None:
    path = tmp_path / "two words.png"
    shutil.copy(pictures[0], path)
    content = [{"type": "image", "image": str(path)}, {"type": "text", "text": "What?"}]
    for spelling in (str(path), str(path).replace(" ", "\\ "), f'"{path}"'):
        assert chat(f"/image {spelling}", "What?").stdout == printed(*answers(content))


def test_lines_are_joined_by_backslashes_and_in_blocks(chat, answers) -> None:
    done = chat("one \\", "two", '"""', "/three", '"""', '"""four"""', " /five")
    assert done.stdout == printed(*answers("one \ntwo", "/three", "four", " /five"))


def test_empty_lines_say_nothing(chat, answers) -> None:
    assert chat("", "   ", "Hello", "").stdout == printed(*answers("Hello"))


@pytest.mark.parametrize("end", ["/exit", "/quit"])
def test_exit_leaves(chat, end) -> None:
    done = chat(end, "Hello")
    assert (done.code, done.stdout) == (0, "")


def test_help_names_every_command(chat) -> None:
    help_text = chat("/help").stderr
    for command in ("image", "system", "reset", "stats", "save", "load", "help", "exit"):
        assert f"/{command}" in help_text


def test_a_mistake_is_a_sentence_and_the_session_goes_on(chat, answers, tmp_path) -> None:
    (tmp_path / "data.json").write_text("{}")
    mistakes = {
        "/fly": "need one of the commands, got `/fly`",
        "/image": "need a path, got none: `/image PATH`",
        f"/image {tmp_path}/none.png": "cannot read",
        f"/image {tmp_path}": "got the folder",
        "/save": "need a path",
        f"/load {tmp_path}/none.json": "none.json",
        f"/load {tmp_path}/data.json": "need a list under `messages`",
        f"/save {tmp_path}/early.json": "got nothing said yet",
        "<start_of_image>": "need as many images",
    }
    done = chat(*mistakes, "Hello")
    assert done.code == 0 and done.stdout == printed(*answers("Hello"))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: [")]
    assert len(errors) == len(mistakes)
    for error, message in zip(errors, mistakes.values(), strict=True):
        assert message in error
    assert "Traceback" not in done.stderr


def test_an_image_for_a_text_only_model_is_refused_at_once(chat, text_only, pictures) -> None:
    done = chat(f"/image {pictures[0]}", "Hello", model=text_only)
    assert done.code == 0 and "need a checkpoint with a vision tower" in done.stderr and done.stdout.strip()


def test_input_that_cannot_be_understood_ends_the_session_with_2(cli, tiny) -> None:
    for stdin, message in ((b'"""\nHello\n', 'need `"""` at the end of a block'), (b"caf\xe9\n", "in UTF-8")):
        done = cli("chat", tiny, stdin=stdin)
        assert done.code == 2 and message in done.stderr and done.stdout == ""


def test_an_answer_that_was_cut_off_is_mentioned(chat) -> None:
    assert f"cut off at {TOKENS} tokens: `--max-tokens` sets that" in chat("Hello").stderr


def test_an_outgrown_context_hints_at_reset(cli, tiny, tmp_path) -> None:
    short = tmp_path / "short"
    shutil.copytree(tiny, short)
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 64
    (short / "config.json").write_text(json.dumps(config))
    long = "word " * 40
    done = cli("chat", short, "-m", -1, stdin=f"Hello\n{long}\n/reset\nHello\n")
    assert "need a conversation of fewer than 64 tokens, the context of the model" in done.stderr
    assert "hint: `/reset` starts a new conversation" in done.stderr
    assert done.stderr.count("the context is full") == 2
    answers = done.stdout
    assert answers[: len(answers) // 2] == answers[len(answers) // 2 :] != ""


def test_a_saved_conversation_goes_on_as_if_it_had_not_ended(chat, answers, pictures, tmp_path) -> None:
    file = tmp_path / "conversation.json"
    chat("/system Be brief.", f"/image {pictures[0]}", "What?", f"/save {file}")
    done = chat(f"/load {file}", "And then?")
    content = [{"type": "image", "image": str(pictures[0])}, {"type": "text", "text": "What?"}]
    assert done.stdout == printed(answers(content, "And then?", system="Be brief.")[1])
    document = json.loads(file.read_text())
    assert [message["role"] for message in document["messages"]] == ["system", "user", "assistant"]
    assert document["messages"][1]["content"][0] == {"type": "image", "path": str(pictures[0])}


def test_saving_replaces_conversations_and_nothing_else(chat, tmp_path) -> None:
    file, other = tmp_path / "conversation.json", tmp_path / "notes.txt"
    other.write_text("mine")
    done = chat("Hello", f"/save {file}", "And then?", f"/save {file}", f"/save {other}")
    assert len(json.loads(file.read_text())["messages"]) == 4
    assert other.read_text() == "mine" and "need a new file or an earlier conversation" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conversation.json", "notes.txt"]


def test_conversations_that_do_not_alternate_are_refused(chat, tmp_path) -> None:
    file = tmp_path / "conversation.json"
    for roles in (["user"], ["assistant", "user"], ["user", "user"]):
        file.write_text(json.dumps({"messages": [{"role": role, "content": "x"} for role in roles]}))
        assert "need messages of user and assistant in turn" in chat(f"/load {file}").stderr


def test_a_draft_model_changes_no_answer(chat, answers, tiny) -> None:
    done = chat("Hello there.", "And then?", "/stats", options=("--draft-model", tiny))
    assert done.stdout.startswith(printed(*answers("Hello there.", "And then?")))
    assert "proposed tokens accepted" in done.stdout


def test_a_draft_model_may_see_images_in_another_size(chat, answers, small_mobile, pictures) -> None:
    done = chat(f"/image {pictures[0]}", "What?", "And then?", options=("--draft-model", small_mobile))
    content = [{"type": "image", "image": str(pictures[0])}, {"type": "text", "text": "What?"}]
    assert done.stdout == printed(*answers(content, "And then?"))


@pytest.mark.parametrize("draft", [False, True])
def test_ctrl_c_keeps_the_answer_as_far_as_it_came(chat, tiny, monkeypatch, tmp_path, draft) -> None:
    interrupt_after(3, monkeypatch)
    file = tmp_path / "conversation.json"
    options = ("--draft-model", tiny) if draft else ()
    done = chat("Hello there.", f"/save {file}", "And then?", options=options)
    assert done.code == 0 and "interrupted; the answer stays" in done.stderr
    messages = json.loads(file.read_text())["messages"]
    assert len(messages) == 2 and messages[1]["content"]
    model, tokenizer = gemma_surgery.load(tiny)
    prompt = build_prompt(tokenizer, model.config, [*messages, {"role": "user", "content": "And then?"}])
    after = gemma_surgery.generate(model, tokenizer, prompt, max_tokens=TOKENS).text
    assert done.stdout == printed(messages[1]["content"], after)


def test_ctrl_c_before_the_answer_forgets_the_message(chat, answers, monkeypatch) -> None:
    interrupt_after(0, monkeypatch)
    done = chat("Forget this.", "Hello there.", "And then?")
    assert "the message is forgotten" in done.stderr
    assert done.stdout == printed(*answers("Hello there.", "And then?"))


def test_on_a_terminal_there_are_marks_and_ctrl_c_at_them_does_not_end_it(tiny) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, "chat", tiny, "-m", "2"],
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
        # A terminal that readline decorates with nothing.
        env={**os.environ, "TERM": "dumb"},
    )
    os.close(slave)

    def until(text: bytes, signalled: bool = False) -> None:
        seen = b""
        deadline = time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < deadline, f"waited for {text!r}, saw {seen!r}"
            if signalled:
                # Between printing a mark and waiting for a key, readline does not notice a signal.
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
            if select.select([master], [], [], 10)[0]:
                seen += os.read(master, 1000)

    until(b">>> ")
    until(b">>> ", signalled=True)
    os.write(master, b"one \\\n")
    until(b"... ")
    os.write(master, b"two\n")
    until(b">>> ")
    os.write(master, b"\x04")
    stderr = process.communicate(timeout=60)[1]
    os.close(master)
    assert process.returncode == 0, stderr
    assert b"/exit leaves" in stderr and b"Traceback" not in stderr
