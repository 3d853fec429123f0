"""Passages: those that ship with the package, and reading others."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

from gemma_surgery.calibration import passages as module
from gemma_surgery.calibration.passages import (
    IMAGE_PROMPT,
    PIECE_CHARACTERS,
    Passage,
    built_in_passages,
    calibration_passages,
    held_out_passages,
    passages_sha256,
    read_passages,
)
from gemma_surgery.errors import SurgeryError

KINDS = {"prose", "dialogue", "list", "code", "numbers", "table", "facts", "rewrite", "description"}
RUN_WORDS = 8
CONTRACTION = re.compile(
    r"\b(?:\w+n['’]t|(?:i|you|we|they|he|she|it|that|there|who|what|where|when|why|how|here|let|could|should"
    r"|would|might|must|nobody)['’](?:m|re|ve|ll|d|s)|y['’]all)\b"
)


def words(text: str) -> list[str]:
    return re.findall(r"[\w’']+", text.lower())


def built_in(kind: str) -> list[Passage]:
    return [passage for passage in built_in_passages() if passage.kind == kind]


def python_blocks(text: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


def test_at_least_160_passages_ship_evenly_over_the_kinds() -> None:
    counts = Counter(passage.kind for passage in built_in_passages())
    assert set(counts) == KINDS
    assert counts.total() >= 160
    assert max(counts.values()) - min(counts.values()) <= 2


def test_any_nine_passages_in_a_row_hold_nearly_every_kind() -> None:
    kinds = [passage.kind for passage in built_in_passages()]
    assert set(kinds[: len(KINDS)]) == KINDS
    assert all(len(set(kinds[start : start + 9])) >= 8 for start in range(len(kinds) - 8))


def test_answers_have_60_to_220_words_and_every_passage_has_a_prompt() -> None:
    for passage in built_in_passages():
        assert 60 <= len(passage.text.split()) <= 220, passage.prompt
        assert passage.prompt.strip() == passage.prompt != ""
        assert passage.text.strip() == passage.text
        assert passage.image is None


def test_no_two_passages_share_a_run_of_words() -> None:
    owner: dict[tuple[str, ...], int] = {}
    for index, passage in enumerate(built_in_passages()):
        found = words(passage.text)
        for start in range(len(found) - RUN_WORDS + 1):
            run = tuple(found[start : start + RUN_WORDS])
            assert owner.setdefault(run, index) == index, " ".join(run)
    prompts = [passage.prompt for passage in built_in_passages()]
    assert len(set(prompts)) == len(prompts)


def test_at_least_60_different_contractions_appear() -> None:
    found = Counter(
        match.replace("’", "'")
        for passage in built_in_passages()
        for match in CONTRACTION.findall(passage.text.lower())
    )
    assert len(found) >= 60, sorted(found)
    assert {"i'm", "don't", "we've", "it's", "they'd", "who's", "that's", "won't", "you'll"} <= set(found)


@pytest.mark.parametrize("character", "’“”—–…·×÷−€£°½√é→✓|`#*")
def test_characters_beyond_letters_appear(character: str) -> None:
    assert any(character in passage.text for passage in built_in_passages())


@pytest.mark.parametrize("language", ["python", "swift", "c", "javascript", "sql", "bash", "json", "html"])
def test_code_is_shown_in_every_language(language: str) -> None:
    assert any(f"```{language}\n" in passage.text for passage in built_in("code"))


def test_python_code_of_the_passages_prints_what_its_comments_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checked = 0
    for passage in built_in("code"):
        source = python_blocks(passage.text)
        if not source:
            continue
        namespace: dict[str, object] = {"__name__": "passage"}
        exec(compile(source, passage.prompt, "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        assert all(f"# {line}" in source for line in printed), passage.prompt
        checked += bool(printed)
    assert checked >= 4


def test_json_code_of_the_passages_is_valid() -> None:
    found = re.findall(r"```json\n(.*?)```", "".join(p.text for p in built_in("code")), re.DOTALL)
    assert found
    for text in found:
        json.loads(text)


def test_rows_of_every_table_have_as_many_cells_as_its_head() -> None:
    tables = 0
    for passage in built_in_passages():
        width = 0
        for line in passage.text.splitlines():
            cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
            assert not (width and cells) or cells == width, line
            tables += bool(cells and not width)
            width = cells
    assert tables >= 18


def test_raw_text_comes_in_pieces_that_end_with_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    paragraphs = [f"Paragraph {n}. " + "word " * (n * 7 % 90) + "end." for n in range(200)]
    path.write_text("\n\n".join(paragraphs) + "\n")
    found = read_passages(path)
    assert len(found) > 10
    assert all(passage.prompt == "" and passage.kind == "text" for passage in found)
    assert all(len(passage.text) <= PIECE_CHARACTERS for passage in found)
    assert all(passage.text.startswith("Paragraph") and passage.text.endswith("end.") for passage in found)
    assert "\n\n".join(passage.text for passage in found) == "\n\n".join(paragraphs)


@pytest.mark.parametrize(
    ("unit", "end"),
    [("one line of text\n", "text"), ("A sentence “of words.” ", ".”"), ("word ", "word"), ("x", "x")],
)
def test_text_without_paragraphs_is_cut_at_the_next_best_place(tmp_path: Path, unit: str, end: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(unit * 3000)
    found = read_passages(path)
    assert all(PIECE_CHARACTERS // 2 <= len(passage.text) <= PIECE_CHARACTERS for passage in found[:-1])
    assert all(passage.text.endswith(end) for passage in found)
    assert "".join("".join(p.text for p in found).split()) == "".join((unit * 3000).split())


def test_byte_order_mark_and_carriage_returns_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.TXT"
    path.write_bytes("\ufefffirst\r\nsecond\r\n".encode())
    assert read_passages(path) == (Passage("text", "", "first\nsecond"),)


@pytest.mark.parametrize(
    ("record", "passage"),
    [
        ({"text": "raw", "id": 7}, Passage("text", "", "raw")),
        ({"prompt": "p", "text": "t"}, Passage("chat", "p", "t")),
        ({"prompt": "p", "completion": "t"}, Passage("chat", "p", "t")),
        ({"prompt": "p", "answer": "t", "kind": "sums"}, Passage("sums", "p", "t")),
        ({"prompt": "p", "response": ""}, Passage("chat", "p", "")),
    ],
)
def test_every_form_of_a_record_is_read(tmp_path: Path, record: dict[str, object], passage: Passage) -> None:
    for name in ("a.jsonl", "a.ndjson"):
        path = tmp_path / name
        path.write_text(f"\n{json.dumps(record)}\n\n")
        assert read_passages(path) == (passage,)


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def test_the_last_turns_of_a_conversation_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    turns = [
        message("user", "first"),
        message("assistant", "1"),
        message("user", [{"type": "text", "text": "sec"}, {"type": "text", "text": "ond"}]),
        message("model", "2"),
    ]
    longer = [message("system", "Be brief."), *turns, message("user", "unanswered")]
    path.write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": longer}) + "\n")
    assert read_passages(path) == (
        Passage("chat", "second", "2"),
        Passage("chat", "Be brief.\n\nsecond", "2"),
    )


def test_an_image_lies_relative_to_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data/pictures").mkdir(parents=True)
    image = tmp_path / "data/pictures/a.png"
    Image.new("RGB", (2, 2)).save(image)
    path = tmp_path / "data/a.jsonl"
    path.write_text('{"prompt": "What is it?", "text": "Black.", "image": "pictures/a.png"}')
    monkeypatch.chdir("/")
    assert read_passages(path) == (Passage("image", "What is it?", "Black.", image),)


def test_a_folder_gives_its_images_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "9.JPG", "b2.webp", "b10.jpeg", "._9.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    found = read_passages(tmp_path)
    assert [p.image.name for p in found if p.image] == ["9.JPG", "10.png", "b2.webp", "b10.jpeg"]
    assert {(p.kind, p.prompt, p.text) for p in found} == {("image", IMAGE_PROMPT, "")}


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.txt", b"fine\nnot \xfe fine\n", r"need UTF-8, got byte 0xfe in `.*a\.txt` line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"got byte 0xff in `.*a\.jsonl` line 2"),
        ("a.txt", b"", r"need text, got nothing in `.*a\.txt`"),
        ("a.txt", b" \n\n\t\n" * 1000, "need text, got nothing"),
        ("a.jsonl", b"\n\n", "need a JSON object per line, got nothing"),
        ("a.jsonl", b'\n{"text": "x"\n', "line 2 is not valid JSON"),
        ("a.jsonl", b'["x"]\n', "line 1 needs a JSON object at the top, got an array"),
        ("a.jsonl", b'{"text": "x", "text": "y"}', "has the key `text` twice"),
        ("a.jsonl", rb'{"text": "\ud800"}', "half of a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not usable JSON: nested too deeply"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}\n', "need one of `text`, .*, got none in .* line 2"),
        ("a.jsonl", b'{"prompt": "x"}', "or `messages`, got none in .* line 1"),
        ("a.jsonl", b'{"prompt": "x", "text": "y", "answer": "z"}', "got `text` and `answer` in .* line 1"),
        ("a.jsonl", b'{"answer": "x"}', "need a `prompt` with `answer`, got none"),
        ("a.jsonl", b'{"text": 5}', "need a string `text`, got 5 in .* line 1"),
        ("a.jsonl", b'{"prompt": null, "text": "x"}', "need a string `prompt`, got null"),
        ("a.jsonl", b'{"prompt": " ", "text": ""}', "need a prompt or a text, got neither in .* line 1"),
        ("a.jsonl", b'{"text": "x", "kind": 1}', "need a string `kind`, got 1"),
        ("a.jsonl", b'{"text": "x", "image": "no.png"}', r"got nothing at `.*no\.png` in .* line 1"),
        ("a.jsonl", b'{"text": "x", "image": ["a"]}', "need a string `image`, got an array of 1 values"),
        ("a.jsonl", b'{"messages": "hi"}', "need an array `messages`, got `hi` in .* line 1"),
        ("a.jsonl", b'{"messages": []}', "need a message of the role `assistant`, got none"),
        ("a.jsonl", b'{"messages": ["hi"]}', "need messages that are objects, got `hi`"),
        ("a.jsonl", b'{"messages": [{"content": "hi"}]}', "need a string `role`, got none"),
        ("a.jsonl", b'{"messages": [{"role": "tool", "content": "hi"}]}', "`assistant`, got `tool`"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "need a string `content`, got none"),
        ("a.jsonl", b'{"messages": [], "text": "x"}', "need either `messages` or prompt and text"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
            "need `content` of text, got an object of 1 keys in .* line 1",
        ),
        ("a.csv", b"text\nx\n", r"need `\.txt`, `\.jsonl`, `\.ndjson` or a folder of images, got `.*a\.csv`"),
        ("a.png", b"x", "hint: give the folder that the image is in"),
    ],
)
def test_what_cannot_be_read_is_refused_naming_file_and_line(
    tmp_path: Path, name: str, data: bytes, problem: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SurgeryError) as caught:
        read_passages(path)
    assert re.search(problem, str(caught.value)), caught.value
    assert caught.value.where == "calibration"
    assert name in caught.value.message
    assert "\n" not in caught.value.message


def test_an_empty_folder_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises(SurgeryError, match=r"need an image \(\.png, .*\), got nothing in"):
        read_passages(tmp_path)
    for name in ("none", "none.txt", "none.jsonl"):
        with pytest.raises(SurgeryError, match=rf"`[^`]*/{name}`"):
            read_passages(tmp_path / name)


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> NoReturn:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SurgeryError, match=f"cannot read `{re.escape(str(tmp_path))}`: permission denied"):
        read_passages(tmp_path)


def test_the_identity_changes_with_every_part_of_a_passage(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"picture")
    same, other = tmp_path / "same.png", tmp_path / "other.png"
    shutil.copy(image, same)
    other.write_bytes(b"picturf")
    base = Passage("chat", "prompt", "text", image)
    second = Passage("text", "", "more")
    variants = [
        [base, second],
        [second, base],
        [base],
        [Passage("chat", "prompt", "Text", image), second],
        [Passage("chat", "promptt", "ext", image), second],
        [Passage("list", "prompt", "text", image), second],
        [Passage("chat", "prompt", "text", None), second],
        [Passage("chat", "prompt", "text", other), second],
    ]
    identities = [passages_sha256(variant) for variant in variants]
    assert len(set(identities)) == len(variants)
    assert passages_sha256([Passage("chat", "prompt", "text", same), second]) == identities[0]
    assert all(re.fullmatch("[0-9a-f]{64}", identity) for identity in identities)


def test_the_identity_of_an_image_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SurgeryError, match=r"cannot read `.*gone\.png`"):
        passages_sha256([Passage("image", "p", "", tmp_path / "gone.png")])


def test_built_in_passages_read_the_same_as_a_user_file() -> None:
    path = Path(module.__file__).with_name("passages.jsonl")
    assert read_passages(path) == built_in_passages()
    assert passages_sha256(read_passages(path)) == passages_sha256(built_in_passages())


def test_what_quality_is_measured_on_is_never_calibrated_on() -> None:
    calibrated, held_out = set(calibration_passages()), set(held_out_passages())
    assert calibrated | held_out == set(built_in_passages())
    assert not calibrated & held_out
    assert len(calibrated) >= 128
    assert {p.kind for p in held_out} == {p.kind for p in calibrated}
