"""Hugging Face repository ids as model names: found in the cache, or downloaded into it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NoReturn

from gemma_surgery.errors import SurgeryError

# What a checkpoint needs. `*` also matches `/`, so subfolders (other formats) are ignored explicitly.
ALLOW_PATTERNS = [
    "*.json",
    "*.safetensors",
    "tokenizer*",
    "*.jinja",
    "*.model",
    "*.txt",
    "LICENSE*",
    "NOTICE*",
]
IGNORE_PATTERNS = ["*/*"]

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)


def is_repo_id(model: str) -> bool:
    """Return whether `model` reads as `owner/name` rather than as a path."""
    return _REPO_ID.fullmatch(model) is not None and ".." not in model and "--" not in model


def snapshot_folder(repo_id: str, revision: str | None = None) -> Path:
    """Return the folder of a repository's snapshot, downloading what the cache lacks.

    Without a network, or with `HF_HUB_OFFLINE=1`, the snapshot in the cache is used. Progress bars go to
    stderr, and only when that is a terminal.

    Raises:
        SurgeryError: no such repository or revision, access not granted, or neither network nor cached
            snapshot.
    """
    # Imported here: a local folder needs neither this package nor its start-up time.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    at = f" at revision `{revision}`" if revision else ""
    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=ALLOW_PATTERNS, ignore_patterns=IGNORE_PATTERNS
        )
    except GatedRepoError:
        _refuse(
            f"need access to the gated repository `{repo_id}`",
            f"accept its licence at https://huggingface.co/{repo_id}, then run `hf auth login`",
        )
    except RevisionNotFoundError:
        _refuse(f"repository `{repo_id}` has no revision `{revision}`")
    except RepositoryNotFoundError:
        _refuse(
            f"`{repo_id}` is neither a folder here nor a repository on the Hub",
            "check the spelling; a private repository needs `hf auth login`",
        )
    except LocalEntryNotFoundError:
        _refuse(
            f"`{repo_id}`{at} is neither a folder here nor in the cache, and the Hub cannot be reached",
            "connect to the network and unset `HF_HUB_OFFLINE`, or give the path of a folder",
        )
    except HFValidationError as error:
        _refuse(f"`{repo_id}` is neither a folder here nor a repository id: {_one_line(error)}")
    except (HfHubHTTPError, OSError) as error:
        _refuse(f"cannot download `{repo_id}`{at}: {_one_line(error)}", "run again; finished files are kept")
    finally:
        if quiet:
            enable_progress_bars()
    return Path(folder)


def _one_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("checkpoint", message, hint) from None
