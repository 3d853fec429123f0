"""Scores that decide which entries remain when the decision needs the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.checkpoint.json_types import Json


@dataclass(frozen=True)
class Ranking:
    """Product of weight norms per entry: ``prod_m ||m[i, :]|| * prod_n ||n[:, i]||``, in float64.

    Args:
        by_row: names of source matrices whose row `i` belongs to entry `i`.
        by_column: names of source matrices whose column `i` belongs to entry `i`.
    """

    by_row: tuple[str, ...]
    by_column: tuple[str, ...]

    def to_json(self) -> Json:
        """For the plan."""
        return {"norms_of_rows": list(self.by_row), "norms_of_columns": list(self.by_column)}
