"""Repository ids: found in the cache without a network, and one line for whatever the Hub answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors
from small_checkpoints import write_folder

from gemma_surgery.checkpoint import open_checkpoint
from gemma_surgery.checkpoint.hub import ALLOW_PATTERNS, IGNORE_PATTERNS, is_repo_id
from gemma_surgery.errors import SurgeryError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("google/gemma-3-4b-it", True),
        ("mlx-community/gemma-3-4b-it-qat-4bit", True),
        ("a/b_c.d", True),
        ("gemma", False),
        ("a/b/c", False),
        ("./a/b", False),
        ("../b", False),
        ("a/..", False),
        ("~/model", False),
        ("a/b c", False),
        ("a/", False),
    ],
)
def test_what_reads_as_a_repository_id(text: str, expected: bool) -> None:
    assert is_repo_id(text) is expected


def cached_snapshot(home: Path) -> Path:
    repo = home / "hub" / "models--some--model"
    snapshot = write_folder(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_offline_uses_the_cached_snapshot(tmp_path: Path, revision: str | None) -> None:
    snapshot = cached_snapshot(tmp_path)
    program = (
        "import sys; from gemma_surgery.checkpoint import open_checkpoint;"
        f"assert 'huggingface_hub' not in sys.modules;"
        f"print(open_checkpoint('some/model', revision={revision!r}).path)"
    )
    result = run_offline(program, tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == snapshot
    assert result.stderr == ""  # no progress bar without a terminal


def test_offline_without_a_snapshot_says_so(tmp_path: Path) -> None:
    program = (
        "from gemma_surgery.checkpoint import open_checkpoint\n"
        "from gemma_surgery.errors import SurgeryError\n"
        "try: open_checkpoint('some/model')\n"
        "except SurgeryError as error: print(error)"
    )
    result = run_offline(program, tmp_path)
    assert result.stdout == (
        "[checkpoint] `some/model` is neither a folder here nor in the cache, and the Hub cannot be reached\n"
        "hint: connect to the network and unset `HF_HUB_OFFLINE`, or give the path of a folder\n"
    )


def run_offline(program: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=root,
    )


def test_a_folder_of_that_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "some" / "model")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("some/model").path == Path("some/model")


def _response_error(kind: type[errors.HfHubHTTPError], text: str) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, text)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_response_error(errors.GatedRepoError, "403"), "need access to the gated repository `some/model`"),
        (
            _response_error(errors.RevisionNotFoundError, "404"),
            "repository `some/model` has no revision `v9`",
        ),
        (
            _response_error(errors.RepositoryNotFoundError, "404"),
            "`some/model` is neither a folder here nor a repository on the Hub",
        ),
        (
            errors.LocalEntryNotFoundError("offline"),
            "`some/model` at revision `v9` is neither a folder here nor in the cache, and the Hub cannot be",
        ),
        (OSError(28, "No space left on device"), "cannot download `some/model` at revision `v9`: [Errno 28]"),
    ],
)
def test_answers_of_the_hub_become_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SurgeryError) as caught:
        open_checkpoint("some/model", revision="v9")
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message


def test_only_files_of_the_top_folder_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(write_folder(tmp_path / "m"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_checkpoint("some/model", revision="v9").path == tmp_path / "m"
    assert asked["repo_id"] == "some/model"
    assert asked["revision"] == "v9"
    names = [
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "chat_template.jinja",
        "LICENSE",
        "x.gguf",
    ]
    kept = huggingface_hub.utils.filter_repo_objects(
        [*names, "original/model.safetensors"], allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS
    )
    assert list(kept) == names[:-1]
