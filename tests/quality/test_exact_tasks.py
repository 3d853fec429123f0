"""Tasks with one right answer: built-in ones are sound, files are checked, answers compared fairly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.loading import load
from gemma_surgery.quality.tasks import ExactTask, built_in_tasks, read_tasks, solve


def test_there_are_enough_built_in_tasks_and_none_twice() -> None:
    tasks = built_in_tasks()
    assert len(tasks) >= 30 and len({task.prompt for task in tasks}) == len(tasks)
    assert all(task.is_right(answer) for task in tasks for answer in task.answers)


def test_every_built_in_sum_is_right() -> None:
    signs = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
    checked = 0
    for task in built_in_tasks():
        words = task.prompt.removeprefix("What is ").split("?")[0].split()
        if len(words) == 3 and words[1] in signs:
            assert task.answers == (str(signs[words[1]](int(words[0]), int(words[2]))),)
            checked += 1
    assert checked >= 4


@pytest.mark.parametrize("said", ["cold", "Cold.", " **Cold** \n", '"cold"', "`COLD`!"])
def test_case_markup_and_a_full_stop_do_not_matter(said: str) -> None:
    assert ExactTask("Opposite of hot?", ("cold",)).is_right(said)


@pytest.mark.parametrize("said", ["", "cold or hot", "warm", "colder", "It is cold."])
def test_other_answers_are_wrong(said: str) -> None:
    assert not ExactTask("Opposite of hot?", ("cold",)).is_right(said)


def test_spaces_in_a_list_do_not_matter() -> None:
    assert ExactTask("Count", ("1, 2, 3",)).is_right("1,2,3.")


def test_a_model_is_asked_every_task(dense, passages) -> None:
    tasks = [ExactTask(each.prompt, (each.text,)) for each in passages[:4]]
    done: list[int] = []
    found = solve(*load(dense), [*tasks, ExactTask("Say yes.", ("impossible answer",))], done.append)
    assert found.right == (True, True, True, True, False) and found.share == 0.8
    assert found.to_json() == {"right": 4, "total": 5, "share": 0.8} and done == [1] * 5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 of `tasks.jsonl` is not valid JSON"),
        ('["a"]', "line 2 of `tasks.jsonl` needs a JSON object at the top"),
        ('{"answer": "4"}', "need a text as `prompt`, got nothing in line 2 of `tasks.jsonl`"),
        ('{"prompt": "2 + 2"}', "need a text or a list of texts as `answer`, got nothing in line 2"),
        ('{"prompt": "2 + 2", "answer": 4}', "need a text or a list of texts as `answer`, got 4 in line 2"),
        ('{"prompt": "2 + 2", "answer": []}', "need a text or a list of texts as `answer`, got"),
        ('{"prompt": "2 + 2", "answer": ["4", ""]}', "need a text or a list of texts as `answer`, got"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1", "answer": ["2", "two"]}) + "\n" + line + "\n")
    with pytest.raises(SurgeryError) as raised:
        read_tasks(path)
    assert message in str(raised.value)


def test_a_file_without_tasks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n\n")
    with pytest.raises(SurgeryError, match="need at least one task, got none"):
        read_tasks(path)
