"""Scores that decide which entries remain when the decision needs the weights themselves."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from gemma_surgery.checkpoint.json_types import Json


@dataclass(frozen=True)
class Ranking:
    """Product of weight norms per entry: ``factor[i] * prod_m ||m[i, :]|| * prod_n ||n[:, i]||``, in float64.

    Args:
        by_row: names of source matrices whose row `i` belongs to entry `i`; one that is named twice
            enters squared.
        by_column: names of source matrices whose column `i` belongs to entry `i`.
        factor: float64 per entry, little-endian bytes; empty: 1.
        entries: where entries are equal runs of rows or columns, their number; the norm of an entry is
            then that of its whole run.
    """

    by_row: tuple[str, ...]
    by_column: tuple[str, ...]
    factor: bytes = b""
    entries: int | None = None

    def to_json(self) -> Json:
        """For the plan."""
        line: dict[str, Json] = {
            "norms_of_rows": list(self.by_row),
            "norms_of_columns": list(self.by_column),
        }
        if self.factor:
            line["factor_sha256"] = hashlib.sha256(self.factor).hexdigest()
        if self.entries is not None:
            line["entries"] = self.entries
        return line
