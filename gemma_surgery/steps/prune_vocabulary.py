"""`prune_vocabulary`: keep the embedding rows of tokens that the deployment needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError, SurgeryErrors
from gemma_surgery.families.edit import set_compact_vocabulary
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.steps.coverage import LEAST_COVERAGE, coverage
from gemma_surgery.surgery import vocabulary
from gemma_surgery.surgery.corpus import from_corpus
from gemma_surgery.surgery.draft import Draft, GeneratedFile
from gemma_surgery.surgery.encoding import Dense
from gemma_surgery.surgery.keep_sets import KeepPass, from_file, keep_pass
from gemma_surgery.surgery.pruned_tokenizer import (
    STALE_FILES,
    pruned,
    pruned_added_tokens,
    pruned_tokenizer_config,
)
from gemma_surgery.surgery.tensor import Literal as LiteralTensor
from gemma_surgery.surgery.tensor import Tensor
from gemma_surgery.surgery.tokenizer import TokenizerFile

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PruneVocabulary(Step):
    """Keep the rows of chosen tokens, and a token map from the unchanged ids to them.

    The rows that stay are not touched. Row 0 of the compact table is zero and stands for pruned ids;
    the tokenizer written beside it keeps all ids and can no longer produce a pruned one. Sources:
    Gemma-Prune, section 3.2 and equation 1.

    Args:
        keep: names of kept sets, united: `ascii`, `typographic`, `latin`, `emoji`, `special`, `all`.
        corpus: text or JSONL files; tokens that occur in them at least `min_count` times are kept.
        min_count: threshold of `corpus`.
        file: a file that lists tokens or ids to keep.
        fill_rows: take lowest further ids until the compact table has exactly this many rows.
        head: an untied `lm_head` is pruned alike, or with `keep` left whole as in the published files.
    """

    keep: tuple[str, ...] = ("ascii", "typographic")
    corpus: tuple[str, ...] = ()
    min_count: int = 1
    file: str | None = None
    fill_rows: int | None = None
    head: Literal["prune", "keep"] = "prune"

    def plan(self, draft: Draft) -> None:
        """Choose tokens, cut the table, write map, tokenizer and config."""
        family = Gemma3(draft.config)
        if family.token_map in draft.tensors:
            raise SurgeryError(
                "prune_vocabulary",
                f"need a whole vocabulary, got one that is pruned already (`{family.token_map}`)",
                "start from the original checkpoint",
            )
        rows = draft.tensor(family.embedding).rows.count
        tokenizer = draft.tokenizer()
        selection = vocabulary.select(tokenizer, self._passes(draft, tokenizer), self.fill_rows)
        # Text-only models share a tokenizer whose image token lies beyond their table: it stays as it was.
        keep = selection.keep
        self._check(draft, family, tokenizer, keep, rows)
        kept = vocabulary.kept_ids(keep[:rows])
        draft.take_rows(family.embedding, kept)
        if family.head in draft.tensors and self.head == "prune":
            draft.take_rows(family.head, kept)
        elif family.head in draft.tensors:
            draft.note(f"`{family.head}` keeps all {rows:,} rows: pruned ids can still be generated")
        token_map = vocabulary.token_map(keep[:rows], rows).astype("<i4")
        origin = LiteralTensor("I32", (rows,), token_map.tobytes())
        draft.add(Tensor.of_values(family.token_map, origin, Dense("I32")))
        set_compact_vocabulary(draft, rows, len(kept))
        self._write_tokenizer(draft, tokenizer, keep)
        draft.note(
            f"{len(kept) - 1:,} of {rows:,} tokens kept, {selection.num_merges:,} of "
            f"{len(tokenizer.merges):,} merges"
        )
        covered = coverage(tokenizer, keep)
        if covered.share < LEAST_COVERAGE:
            missing = ", ".join(literal(token) for token in covered.missing)
            draft.warn(
                f"the vocabulary is too small: {1 - covered.share:.1%} of the tokens of ordinary English "
                f"text are pruned, most often {missing}; the model was never taught to write them in pieces"
            )
        draft.table += [("pass", "matched", "added")]
        draft.table += [
            (row.name, f"{row.matched:,}", f"{row.added:,}")
            for row in sorted(selection.rows, key=lambda row: -row.added)
        ]

    def _passes(self, draft: Draft, tokenizer: TokenizerFile) -> list[KeepPass]:
        passes = [keep_pass(tokenizer, name) for name in self.keep]
        if self.corpus:
            files = [Path(name).expanduser() for name in self.corpus]
            mask = from_corpus(tokenizer, files, draft.source.path / "tokenizer.json", self.min_count)
            passes.append(KeepPass("corpus", mask))
        if self.file is not None:
            passes.append(KeepPass("file", from_file(tokenizer, Path(self.file).expanduser())))
        return passes

    def _check(self, draft: Draft, family: Gemma3, tokenizer: TokenizerFile, keep: Mask, rows: int) -> None:
        errors = vocabulary.problems(tokenizer, keep)
        generation = "generation_config.json"
        documents = [draft.source.json_file(generation)] if draft.has_file(generation) else []
        for key, ids in family.token_ids(*documents).items():
            lost = [i for i in ids if i < rows and (i >= len(keep) or not keep[i])]
            if lost:
                errors.append(
                    SurgeryError(
                        "prune_vocabulary",
                        f"`{key}` names the token ids {lost}, which would be pruned",
                        "add `special`",
                    )
                )
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise SurgeryErrors(errors)

    def _write_tokenizer(self, draft: Draft, tokenizer: TokenizerFile, keep: Mask) -> None:
        draft.generated["tokenizer.json"] = GeneratedFile(
            lambda: pruned(tokenizer, keep), tokenizer.fingerprint(keep)
        )
        for name, prune in (
            ("tokenizer_config.json", pruned_tokenizer_config),
            ("added_tokens.json", pruned_added_tokens),
        ):
            if draft.has_file(name):
                document: dict[str, Json] = prune(draft.document(name), keep)  # type: ignore[arg-type, assignment]
                draft.documents[name] = document
        for name in STALE_FILES:
            if draft.has_file(name):
                draft.omitted.add(name)
                draft.note(f"`{name}` left out: it would still produce pruned ids")
