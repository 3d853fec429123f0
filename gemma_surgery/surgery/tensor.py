"""One logical tensor of a draft: where its values come from and what was done to them."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.surgery.encoding import (
    Component,
    Dense,
    Encoding,
    Quantized,
    Shape,
    components,
)
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Scores, Selection
from gemma_surgery.surgery.solve import Solve
from gemma_surgery.surgery.transform import Transform


@dataclass(frozen=True)
class SourceMatrix:
    """A logical matrix of the source checkpoint."""

    name: str
    shape: Shape
    encoding: Encoding

    @property
    def rows(self) -> int:
        """Entries along the first dimension."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Values per row."""
        return math.prod(self.shape[1:])

    @property
    def components(self) -> tuple[Component, ...]:
        """The stored tensors."""
        return components(self.name, self.shape, self.encoding)


@dataclass(frozen=True)
class Literal:
    """A new tensor whose bytes are known when planning, e.g. a token map."""

    dtype: str
    shape: Shape
    data: bytes

    def to_json(self) -> Json:
        """For the plan."""
        return {"literal_sha256": hashlib.sha256(self.data).hexdigest()}


@dataclass(frozen=True)
class RandomFill:
    """A tensor of reproducible random values, for synthetic checkpoints.

    Args:
        seed: one seed per checkpoint; the tensor's name is mixed in.
        shape: logical shape.
        deviation: standard deviation of the values; their mean is 0.
        stream: draw what the tensor of this name draws, default: the tensor's own name.
    """

    seed: int
    shape: Shape
    deviation: float
    stream: str | None = None

    def to_json(self) -> Json:
        """For the plan."""
        return {
            "random_seed": self.seed,
            "deviation": self.deviation,
            "stream": self.stream,
        }


@dataclass(frozen=True, eq=False)
class RemovedInputs:
    """What the removed columns of a matrix added on average: ``sum_j W[:, j] * mean[j]``, `[rows]`.

    Source: FLAP (arXiv 2312.11983), which makes it the bias of the pruned linear.

    Args:
        matrix: W, as it is in the source.
        mean: of the inputs over calibration samples, float64 `[columns]`.
        kept: columns that were not removed.
    """

    matrix: SourceMatrix
    mean: Scores
    kept: Selection

    @property
    def shape(self) -> Shape:
        """One value per row of the matrix."""
        return (self.matrix.rows,)

    def to_json(self) -> Json:
        """For the plan."""
        digest = hashlib.sha256(self.mean.astype("<f8").tobytes()).hexdigest()
        return {"removed_columns_of": self.matrix.name, "kept": self.kept.to_json(), "mean_sha256": digest}


Origin: TypeAlias = "SourceMatrix | Literal | RandomFill | RemovedInputs"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A logical tensor of the output: origin, then transform, then rows and columns, then encoding.

    With a `solve`, columns and encoding are applied by it.
    """

    name: str
    origin: Origin
    encoding: Encoding
    rows: Selection
    columns: Selection
    transform: Transform | None = None
    solve: Solve | None = None

    @classmethod
    def of_source(cls, source: SourceMatrix) -> Tensor:
        """The untouched tensor."""
        whole = Selection(source.rows), Selection(source.columns)
        return cls(source.name, source, source.encoding, *whole)

    @classmethod
    def of_values(cls, name: str, origin: Literal | RandomFill | RemovedInputs, encoding: Encoding) -> Tensor:
        """A new tensor that has no source."""
        rows, columns = (origin.shape[0] if origin.shape else 1), math.prod(origin.shape[1:])
        return cls(name, origin, encoding, Selection(rows), Selection(columns))

    @cached_property
    def shape(self) -> Shape:
        """Logical shape of the output."""
        base = self.origin.shape
        if self.transform is not None:
            base = self.transform.shape(base)
        if self.columns.is_whole:
            return base if self.rows.is_whole else (self.rows.count, *base[1:])
        return (self.rows.count, self.columns.count)

    @cached_property
    def components(self) -> tuple[Component, ...]:
        """The tensors that will be stored."""
        return components(self.name, self.shape, self.encoding)

    @cached_property
    def size_bytes(self) -> int:
        """Stored bytes."""
        return sum(part.size_bytes for part in self.components)

    @cached_property
    def method(self) -> str:
        """The cheapest exact way to produce it: the plan's verb."""
        if isinstance(self.origin, Literal):
            return "literal"
        if isinstance(self.origin, RandomFill):
            return "random"
        if isinstance(self.origin, RemovedInputs):
            return "removed_inputs"
        if self.solve is not None:
            return "solve"
        if self.transform is not None:
            return "transform"
        if self.encoding != self.origin.encoding:
            return "requantize"
        if self.columns.is_whole:
            return "copy" if self.rows.is_whole else "gather_rows"
        if isinstance(self.encoding, Dense) or self.columns.whole_blocks(self.encoding.group_size):
            return "gather_columns"
        return "requantize"

    @cached_property
    def lossless(self) -> bool:
        """Whether every stored value equals the source value that it claims to be."""
        method = self.method
        if method == "transform":
            same = isinstance(self.origin, SourceMatrix) and self.origin.encoding == self.encoding
            return self.transform is not None and self.transform.lossless and same
        return method not in ("requantize", "solve", "removed_inputs")

    @property
    def rankings(self) -> list[Ranking]:
        """What has to be computed from weights before the tensor can be produced."""
        wanted = [*self.rows.rankings, *self.columns.rankings]
        if isinstance(self.origin, RemovedInputs):
            wanted += self.origin.kept.rankings
        return wanted

    def with_transform(self, transform: Transform) -> Tensor:
        """Replace the values by `transform` of the untouched source."""
        if self.transform is not None or not (self.rows.is_whole and self.columns.is_whole):
            raise ValueError(f"`{self.name}` was already edited; a transform has to come first")
        shape = transform.shape(self.origin.shape)
        rows, columns = Selection(shape[0]), Selection(math.prod(shape[1:]))
        return replace(self, transform=transform, rows=rows, columns=columns)

    def to_json(self) -> dict[str, Json]:
        """The plan's line about this tensor."""
        line: dict[str, Json] = {
            "name": self.name,
            "shape": list(self.shape),
            "encoding": self.encoding.describe(),
            "size_bytes": self.size_bytes,
            "method": self.method,
            "lossless": self.lossless,
        }
        if isinstance(self.origin, SourceMatrix):
            line["source"] = self.origin.name
            line["source_encoding"] = self.origin.encoding.describe()
        else:
            line["values"] = self.origin.to_json()
        if isinstance(self.encoding, Quantized):
            line["scale_dtype"] = self.encoding.scale_dtype
        if self.transform is not None:
            line["transform"] = self.transform.to_json()
        if self.solve is not None:
            line["solve"] = self.solve.to_json()
        if not self.rows.is_whole:
            line["rows"] = self.rows.to_json()
        if not self.columns.is_whole:
            line["columns"] = self.columns.to_json()
        return line
