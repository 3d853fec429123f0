"""Choosing the rows of a compact vocabulary: passes, closure, filling, and the token map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.keep_sets import KeepPass
from gemma_surgery.surgery.merge_closure import Merger, atomic, close_under_merges, kept_merges
from gemma_surgery.surgery.tokenizer import TokenizerFile
from gemma_surgery.surgery.tokenizer_json import quoted

Mask = npt.NDArray[np.bool_]
Ids = npt.NDArray[np.int32]

# Chat templates separate turns with runs of one to three newlines.
TEMPLATE_NEWLINES = ("\n", "\n\n", "\n\n\n")


@dataclass(frozen=True)
class PassRow:
    """What one pass contributed.

    Attributes:
        name: the pass; the last ones are `closure` and, if rows were filled up, `fill`.
        matched: tokens that the pass matches.
        added: tokens that no earlier pass matched.
    """

    name: str
    matched: int
    added: int


@dataclass(frozen=True, eq=False)
class Selection:
    """The kept tokens of a vocabulary.

    Attributes:
        keep: bool [num_ids].
        rows: what every pass contributed, in order.
        num_merges: merges that remain.
    """

    keep: Mask
    rows: tuple[PassRow, ...]
    num_merges: int

    @property
    def num_kept(self) -> int:
        """Number of kept tokens."""
        return int(self.keep.sum())

    @property
    def compact_rows(self) -> int:
        """Rows of the compact table: the zero row and one per kept token."""
        return self.num_kept + 1


def select(tokenizer: TokenizerFile, passes: Sequence[KeepPass], fill_rows: int | None = None) -> Selection:
    """Unite the passes, close them under merges, and fill up to a number of rows if asked.

    Args:
        tokenizer: the original tokenizer.
        passes: the passes; their order only decides which of them a token is counted for.
        fill_rows: rows that the compact table shall have, zero row included.

    Raises:
        SurgeryError: `fill_rows` is too small or too large.
    """
    keep = np.zeros(tokenizer.num_ids, np.bool_)
    rows: list[PassRow] = []
    for keep_pass in passes:
        new = keep_pass.mask & ~keep
        rows.append(PassRow(keep_pass.name, int(keep_pass.mask.sum()), int(new.sum())))
        keep |= new
    closed = close_under_merges(tokenizer, keep)
    num_added = int(closed.sum() - keep.sum())
    rows.append(PassRow("closure", num_added, num_added))
    if fill_rows is not None:
        filled = fill(tokenizer, closed, fill_rows)
        num_added = int(filled.sum() - closed.sum())
        rows.append(PassRow("fill", num_added, num_added))
        closed = filled
    return Selection(closed, tuple(rows), int(kept_merges(tokenizer, closed).sum()))


def fill(tokenizer: TokenizerFile, keep: Mask, num_rows: int) -> Mask:
    """Keep the lowest further ids until the compact table has exactly `num_rows` rows, zero row included.

    `<unusedN>` tokens are not taken, nor tokens that the kept merges would not build.

    Args:
        tokenizer: the original tokenizer.
        keep: bool [num_ids], closed under merges.
        num_rows: the rows wanted.

    Raises:
        SurgeryError: more rows are kept already, or the vocabulary has too few tokens.
    """
    filled: Mask = keep.copy()
    missing = num_rows - 1 - int(keep.sum())
    if missing < 0:
        raise SurgeryError(
            "prune_vocabulary",
            f"need at least {int(keep.sum()) + 1} rows for the kept tokens, got `fill_rows` = {num_rows}",
        )
    free = tokenizer.exists & ~keep
    free[tokenizer.unused_ids] = False
    single = atomic(tokenizer)
    merger: Merger | None = None
    took = True
    while missing and took:
        took = False
        # Built tokens become available when their parts have been taken: go round until nothing changes.
        for token_id in np.flatnonzero(free & ~filled).tolist():
            if not single[token_id]:
                merger = merger or Merger(tokenizer)
                filled[token_id] = True
                filled[token_id] = bool(merger.derivation(token_id, filled))
            else:
                filled[token_id] = True
            if filled[token_id]:
                took = True
                missing -= 1
                if not missing:
                    break
    if missing:
        raise SurgeryError(
            "prune_vocabulary", f"need {num_rows} rows, got {num_rows - missing} from `{tokenizer.where}`"
        )
    return filled


def problems(tokenizer: TokenizerFile, keep: Mask) -> list[SurgeryError]:
    """Say why a model could not work with these tokens; empty if it can.

    Args:
        tokenizer: the original tokenizer.
        keep: bool [num_ids].
    """
    found: list[SurgeryError] = []
    byte_ids = tokenizer.byte_ids[tokenizer.byte_ids >= 0]
    found_newlines = (tokenizer.find(token) for token in TEMPLATE_NEWLINES)
    newlines = sorted(token_id for token_id in found_newlines if token_id is not None)
    groups = (
        ("the special tokens, which frame every prompt", tokenizer.special_ids.tolist(), "special"),
        ("all byte tokens, which spell every other character", byte_ids.tolist(), "special"),
        ("the newline tokens, which the chat template uses", newlines, "typographic"),
    )
    for what, ids, nearest in groups:
        missing = [token_id for token_id in ids if not keep[token_id]]
        if missing:
            names = ", ".join(quoted(tokenizer.tokens[token_id]) for token_id in missing[:4])
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            found.append(
                SurgeryError(
                    "prune_vocabulary",
                    f"the kept set must hold {what}, but {names}{more} would be pruned",
                    f"add `{nearest}`",
                )
            )
    if not tokenizer.byte_fallback and not keep[tokenizer.exists].all():
        found.append(
            SurgeryError(
                "prune_vocabulary",
                f"pruning needs `byte_fallback`, or pruned characters turn into unknown tokens;"
                f" it is off in `{tokenizer.where}`",
                "keep `all`",
            )
        )
    return found


def token_map(keep: Mask, num_rows: int) -> Ids:
    """Return int32 [num_rows]: the k-th kept token maps to row k, counted from 1, a pruned one to row 0.

    Args:
        keep: bool [num_ids].
        num_rows: rows of the original table, at least `num_ids`; rows without a token map to 0.

    Source: the Gemma-Prune paper, equation 1.
    """
    mapping = np.zeros(num_rows, np.int32)
    mapping[: keep.size] = np.where(keep, np.cumsum(keep), 0)
    return mapping


def kept_ids(keep: Mask) -> Ids:
    """Return int32 [num_kept + 1], the source row of every compact row: -1 for the zero row, then the ids."""
    return np.concatenate(([-1], np.flatnonzero(keep))).astype(np.int32)
