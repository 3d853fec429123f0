"""A profile in the making: a hidden file with a place for every statistic, which at the end gets its name.

Beside it are the hidden states behind the last saved layer, from which an interrupted run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.activations import Activations
from gemma_surgery.checkpoint.header import encode_header
from gemma_surgery.checkpoint.json_types import os_reason
from gemma_surgery.errors import SurgeryError

# Name, dtype and shape of a statistic.
Entry = tuple[str, str, tuple[int, ...]]
# Longest first line of a file of states.
MAX_LINE_BYTES = 1024


class UnfinishedProfile:
    """The unfinished profile `.NAME.partial`, and the hidden states `.NAME.states`.

    Only rank 0 keeps statistics; each rank keeps its own states, rank N in `.NAME.states.N`.

    Args:
        path: of the finished profile.
        entries: all that will be in it, in the order of the file.
        metadata: of the file.
        identity: of checkpoint, data, options and rank; a run with another one is not continued.
        rank: of this process.

    Raises:
        SurgeryError: there is no folder to write to.
    """

    def __init__(
        self,
        path: Path,
        entries: Sequence[Entry],
        metadata: Mapping[str, str],
        identity: str,
        rank: int,
    ) -> None:
        if not path.parent.is_dir():
            raise SurgeryError("profile", f"need a folder `{path.parent}` for the profile, got none")
        self._header, starts = encode_header(entries, metadata)
        self._path, self._identity, self._writes = path, identity, rank == 0
        self._places = {name: start for (name, _, _), start in zip(entries, starts, strict=True)}
        self._sizes = {name: shape[0] for name, _, shape in entries}
        self._partial = path.with_name(f".{path.name}.partial")
        self._states = path.with_name(f".{path.name}.states" + (f".{rank}" if rank else ""))
        self._file: BinaryIO | None = None

    def __enter__(self) -> UnfinishedProfile:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # What could not be written has been reported.
            with suppress(OSError):
                self._file.close()

    def begin(self) -> None:
        """Start with an empty file; nothing of an earlier run is left to be taken for this one's."""

        def write() -> None:
            self._states.unlink(missing_ok=True)
            if self._file is not None:
                self._file.close()
            if self._writes:
                self._file = self._partial.open("wb")
                self._file.write(self._header)

        self._try(write)

    def put(self, name: str, values: npt.NDArray[np.generic]) -> None:
        """Write one statistic to its place."""
        if not self._writes:
            return
        assert values.shape == (self._sizes[name],), name

        def write() -> None:
            assert self._file is not None
            self._file.seek(self._places[name])
            self._file.write(np.ascontiguousarray(values).data)

        self._try(write)

    def save(self, layers_done: int, states: Activations) -> None:
        """Make `layers_done` the place to go on from."""

        def write() -> None:
            if self._file is not None:
                self._file.flush()
                os.fsync(self._file.fileno())
            temporary = self._states.with_name(self._states.name + ".tmp")
            # Number and states in one file: a run killed here has the old ones or the new ones.
            with temporary.open("wb") as file:
                line = json.dumps({"identity": self._identity, "layers_done": layers_done})
                file.write(f"{line}\n".encode())
                file.write(states.all.data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._states)

        self._try(write)

    def resume(self, states: Activations) -> int:
        """Read the states behind the last saved layer.

        Returns:
            How many layers are done; 0 where nothing was saved.

        Raises:
            SurgeryError: what was saved is another run's, or damaged.
        """
        try:
            file = self._states.open("rb")
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise SurgeryError("profile", f"cannot read `{self._states}`: {os_reason(error)}") from None
        with file:
            try:
                document = json.loads(file.readline(MAX_LINE_BYTES))
                same = document["identity"] == self._identity
            except (ValueError, LookupError, TypeError):
                same = False
            if not same:
                raise SurgeryError(
                    "profile",
                    f"need the run that was interrupted, got another checkpoint, data or options than in "
                    f"`{self._states.name}`",
                    "repeat the interrupted command with `--resume`, or leave `--resume` out to start anew",
                )
            self._read(file, states)
        if self._writes:
            self._try(self._reopen)
        return int(document["layers_done"])

    def commit(self) -> None:
        """Let the finished file appear and remove everything else."""

        def write() -> None:
            if self._writes:
                assert self._file is not None
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                self._file = None
                self._partial.replace(self._path)
            self._states.unlink(missing_ok=True)

        self._try(write)

    def _reopen(self) -> None:
        self._file = self._partial.open("r+b")

    def _read(self, file: BufferedReader, states: Activations) -> None:
        need_bytes = states.all.nbytes
        got_bytes = os.fstat(file.fileno()).st_size - file.tell()
        if got_bytes != need_bytes:
            raise SurgeryError(
                "profile",
                f"need {need_bytes:,} bytes of states to resume, got {got_bytes:,} in `{self._states.name}`",
                "leave `--resume` out to start anew",
            )
        self._try(lambda: file.readinto(states.all.data.cast("B")))

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            path = error.filename or self._path
            raise SurgeryError("profile", f"cannot write `{path}`: {os_reason(error)}") from None
