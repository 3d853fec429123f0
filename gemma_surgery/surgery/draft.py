"""The description of the checkpoint to be written, which steps rewrite one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import Encoding, components
from gemma_surgery.surgery.selection import Indices, Selection, TopRanked
from gemma_surgery.surgery.solve import Solve
from gemma_surgery.surgery.tensor import SourceMatrix, Tensor
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.transform import Transform

JsonObject: TypeAlias = "dict[str, Json]"
Place: TypeAlias = "Callable[[str], str]"


@dataclass(frozen=True)
class GeneratedFile:
    """A file whose bytes are made during the pass: `make()`; `digest` tells two apart in the plan."""

    make: Callable[[], bytes]
    digest: str


@dataclass(frozen=True)
class MustBeEqual:
    """A fact that the pass checks before it writes anything: two source matrices are bit-identical."""

    step: str
    first: str
    second: str

    def to_json(self) -> Json:
        """For the plan."""
        return {"step": self.step, "bit_identical": [self.first, self.second]}


@dataclass(frozen=True)
class StepReport:
    """What one step did, in exact bytes of tensor data.

    `saved_bytes` counts tensors that come from the source, `added_bytes` those the step created;
    `lossless` means that every stored value that remains is exactly a value of the source;
    `profile_sha256` is the identity of the profile that the step decided by; `warnings` are failures that
    others have published, recognised before time is spent on them.
    """

    step: str
    saved_bytes: int
    added_bytes: int
    lossless: bool
    notes: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    profile_sha256: str | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """For `--json` and the manifest."""
        line: JsonObject = {
            "step": self.step,
            "saved_bytes": self.saved_bytes,
            "added_bytes": self.added_bytes,
            "lossless": self.lossless,
            "notes": list(self.notes),
        }
        if self.warnings:
            line["warnings"] = list(self.warnings)
        if self.profile_sha256 is not None:
            line["profile_sha256"] = self.profile_sha256
        return line


@dataclass
class Draft:
    """Tensors, config, side files and tokenizer of the output, as edits on a source checkpoint."""

    source: Checkpoint
    tensors: dict[str, Tensor]
    config: JsonObject
    documents: dict[str, JsonObject] = field(default_factory=dict)
    generated: dict[str, GeneratedFile] = field(default_factory=dict)
    omitted: set[str] = field(default_factory=set)
    metadata: dict[str, str] = field(default_factory=dict)
    requirements: list[MustBeEqual] = field(default_factory=list)
    place: Place | None = None
    editors: dict[int, str] = field(default_factory=dict)
    reports: list[StepReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)
    profile_sha256: str | None = None
    warnings: list[str] = field(default_factory=list)
    _tokenizer: list[TokenizerFile] = field(default_factory=list)
    _own_documents: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: Checkpoint) -> Draft:
        """The untouched checkpoint."""
        tensors = {name: Tensor.of_source(matrix) for name, matrix in logical_matrices(source).items()}
        return cls(source, tensors, copy.deepcopy(source.config), metadata=dict(source.metadata))

    @property
    def size_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def run(self, name: str, step: Callable[[Draft], None]) -> None:
        """Apply a step whole or, when it raises, not at all, and account for its bytes."""
        trial = self._fork()
        step(trial)
        before, after = _weigh(self.tensors), _weigh(trial.tensors)
        lossless = not any(_adds_loss(self.tensors, tensor) for tensor in trial.tensors.values())
        report = StepReport(
            name,
            before[0] - after[0],
            after[1] - before[1],
            lossless,
            tuple(trial.notes),
            tuple(trial.table),
            trial.profile_sha256,
            tuple(trial.warnings),
        )
        trial.reports.append(report)
        trial.editors |= {
            id(tensor.origin): name for tensor in trial.tensors.values() if _edited(self.tensors, tensor)
        }
        self.__dict__.update(trial.__dict__)

    def note(self, text: str) -> None:
        """Tell the user something that the running step decided."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Tell the user that what the running step does is known to fail."""
        self.warnings.append(text)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`.

        Raises:
            SurgeryError: the checkpoint has none of that name.
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise SurgeryError(
                "checkpoint", f"need a tensor `{name}`, got none of that name in {self.source.path.name}"
            ) from None

    def take_rows(self, name: str, rows: Sequence[int] | Indices | TopRanked) -> None:
        """Keep `rows` of a tensor, in that order; -1 is a zero row."""
        tensor = self.tensor(name)
        self._edit(tensor, rows=_take(tensor.rows, rows))

    def take_columns(self, name: str, columns: Sequence[int] | Indices | TopRanked) -> None:
        """Keep `columns` of a matrix, in that order; -1 is a zero column."""
        tensor = self.tensor(name)
        if len(tensor.shape) != 2:
            raise SurgeryError("surgery", f"need a matrix, got {list(tensor.shape)} in `{name}`")
        self._edit(tensor, columns=_take(tensor.columns, columns))

    def pad_rows(self, name: str, count: int) -> None:
        """Append zero rows up to `count`."""
        tensor = self.tensor(name)
        self._edit(tensor, rows=tensor.rows.pad_to(count))

    def pad_columns(self, name: str, count: int, encoding: Encoding | None = None) -> None:
        """Append zero columns up to `count`, storing the result in `encoding` if given."""
        tensor = self.tensor(name)
        if tensor.solve is not None:
            raise SurgeryError(
                "surgery",
                f"need a matrix that is stored without error compensation to pad it, got `{name}`",
                "pad before quantizing, or except the matrix by a rule",
            )
        self._edit(tensor, columns=tensor.columns.pad_to(count), encoding=encoding)

    def encode(self, name: str, encoding: Encoding) -> None:
        """Store a tensor in another encoding."""
        self._edit(self.tensor(name), encoding=encoding)

    def transform(self, name: str, transform: Transform) -> None:
        """Replace the values of a whole, so far unedited tensor."""
        self.tensors[name] = self.tensor(name).with_transform(transform)

    def solve(self, name: str, solve: Solve) -> None:
        """Make good for lost columns or for rounding by the inputs that a profile measured."""
        tensor = self.tensor(name)
        if not isinstance(tensor.origin, SourceMatrix) or tensor.transform or len(tensor.shape) != 2:
            raise SurgeryError("surgery", f"need a matrix of the source to solve for, got `{name}`")
        self.tensors[name] = replace(tensor, solve=solve)

    def drop(self, name: str) -> None:
        """Leave a tensor out."""
        self.tensor(name)
        del self.tensors[name]

    def rename(self, names: dict[str, str]) -> None:
        """Give tensors new names, all at once, keeping their order."""
        self.tensors = {
            names.get(name, name): replace(tensor, name=names.get(name, name))
            for name, tensor in self.tensors.items()
        }

    def add(self, tensor: Tensor) -> None:
        """Add a tensor that has no source."""
        if tensor.name in self.tensors:
            raise SurgeryError("surgery", f"need a new name, got `{tensor.name}` which exists")
        self.tensors[tensor.name] = tensor

    def has_file(self, name: str) -> bool:
        """Whether the source carries this side file and no step dropped it."""
        return name in self.source.side_files and name not in self.omitted

    def document(self, name: str) -> JsonObject:
        """A JSON side file, to be edited in place."""
        if name not in self._own_documents:
            shared = self.documents.get(name)
            self.documents[name] = self.source.json_file(name) if shared is None else copy.deepcopy(shared)
            self._own_documents.add(name)
        return self.documents[name]

    def tokenizer(self) -> TokenizerFile:
        """The source's tokenizer.json, parsed once.

        Raises:
            SurgeryError: the checkpoint has none, or it is malformed.
        """
        if not self._tokenizer:
            if not self.has_file("tokenizer.json"):
                raise SurgeryError(
                    "tokenizer",
                    f"need a `tokenizer.json` beside the weights, got none in {self.source.path.name}",
                    "copy the tokenizer files of the original model into the folder",
                )
            self._tokenizer.append(TokenizerFile.read(self.source.path / "tokenizer.json"))
        return self._tokenizer[0]

    def _edit(
        self,
        tensor: Tensor,
        rows: Selection | None = None,
        columns: Selection | None = None,
        encoding: Encoding | None = None,
    ) -> None:
        edited = replace(
            tensor,
            encoding=encoding or tensor.encoding,
            rows=rows or tensor.rows,
            columns=columns or tensor.columns,
        )
        components(edited.name, edited.shape, edited.encoding)
        self.tensors[tensor.name] = edited

    def _fork(self) -> Draft:
        return Draft(
            self.source,
            dict(self.tensors),
            copy.deepcopy(self.config),
            dict(self.documents),
            dict(self.generated),
            set(self.omitted),
            dict(self.metadata),
            list(self.requirements),
            self.place,
            dict(self.editors),
            list(self.reports),
            _tokenizer=self._tokenizer,
        )


def _take(selection: Selection, chosen: Sequence[int] | Indices | TopRanked) -> Selection:
    return selection.take_top(chosen) if isinstance(chosen, TopRanked) else selection.take(chosen)


def _weigh(tensors: dict[str, Tensor]) -> tuple[int, int]:
    """Bytes that come from the source, and bytes that do not."""
    sourced = sum(t.size_bytes for t in tensors.values() if isinstance(t.origin, SourceMatrix))
    return sourced, sum(t.size_bytes for t in tensors.values()) - sourced


def _counterpart(before: dict[str, Tensor], tensor: Tensor) -> Tensor | None:
    """The tensor as it was before the step: renamed tensors keep their origin."""
    same = before.get(tensor.name)
    if same is not None and same.origin is tensor.origin:
        return same
    return next((other for other in before.values() if other.origin is tensor.origin), None)


def _adds_loss(before: dict[str, Tensor], tensor: Tensor) -> bool:
    """Whether a step made values inexact that were exact, or mixed new ones."""
    if tensor.lossless:
        return False
    old = _counterpart(before, tensor)
    if old is None or old.lossless:
        return True
    if tensor.solve is not None and tensor.solve is not old.solve:
        return True
    transform = tensor.transform
    return transform is not None and transform is not old.transform and not transform.lossless


def _edited(before: dict[str, Tensor], tensor: Tensor) -> bool:
    old = _counterpart(before, tensor)
    if old is None:
        return True
    return any(
        getattr(old, part) is not getattr(tensor, part)
        for part in ("rows", "columns", "encoding", "transform", "solve")
    )
