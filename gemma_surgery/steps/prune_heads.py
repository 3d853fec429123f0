"""`prune_heads`: remove whole groups of attention heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gemma_surgery.calibration.profile import Profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import set_heads
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step, open_profile, source_matrix
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Indices, Selection, TopRanked


@dataclass(frozen=True)
class PruneHeads(Step):
    """Remove the least important groups of every decoder layer: a kv head with its query heads.

    With a profile, a group's score is the mean squared norm of what its query heads add to the residual;
    without one it is the product of its weight norms in q, k, v and o. Which groups go differs from layer
    to layer, how many is the same, as engines know one number of heads.

    Args:
        groups: how many go.
        profile: a profile of this checkpoint (`docs/format.md`), default: the recipe's.
    """

    groups: int = 1
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Choose and remove groups in every layer."""
        family = Gemma3(draft.config)
        heads, kv_heads = family.text("num_attention_heads"), family.text("num_key_value_heads")
        if heads % kv_heads:
            raise SurgeryError("prune_heads", f"need whole groups, got {heads} heads and {kv_heads} kv heads")
        if not 0 < self.groups < kv_heads:
            raise SurgeryError(
                "prune_heads",
                f"need `groups` in 1..{kv_heads - 1}, got {self.groups}"
                if kv_heads > 1
                else "need more than one kv head to remove some, got 1",
                f"the checkpoint has {kv_heads} kv heads at this point of the recipe",
            )
        profile = None if self.profile is None else open_profile(draft, self.profile)
        kept = kv_heads - self.groups
        removed = []
        for layer in range(family.num_layers):
            names = family.attention(layer)
            if any(not selection.is_whole for selection in _head_selections(draft, names)):
                raise SurgeryError("prune_heads", f"need heads that were not pruned before, got `{names[0]}`")
            if profile is None:
                self._keep_by_norms(draft, names, kept, kv_heads)
            else:
                groups = _best_groups(draft, names[0], profile, heads, kv_heads, kept)
                gone = sorted(set(range(kv_heads)) - set(groups.tolist()))
                removed.append(f"{layer}: {', '.join(map(str, gone))}")
                self._keep(draft, names, groups, kv_heads)
        set_heads(draft, heads // kv_heads * kept, kept)
        used = "weight norms" if profile is None else "what their heads add as measured"
        draft.note(f"{kv_heads} -> {kept} kv heads in every layer, chosen by {used}")
        if removed:
            draft.note(f"removed groups by layer: {'; '.join(removed)}")

    def _keep(self, draft: Draft, names: tuple[str, str, str, str], groups: Indices, kv_heads: int) -> None:
        query, key, value, output = names
        for name in (query, key, value):
            draft.take_rows(name, _expand(groups, draft.tensor(name).rows.count // kv_heads))
        draft.take_columns(output, _expand(groups, draft.tensor(output).columns.count // kv_heads))

    def _keep_by_norms(
        self, draft: Draft, names: tuple[str, str, str, str], kept: int, kv_heads: int
    ) -> None:
        query, key, value, output = (source_matrix(draft, "prune_heads", name).name for name in names)
        ranking = Ranking((query, key, value), (output,), entries=kv_heads)
        for name, selection in zip(names, _head_selections(draft, names), strict=True):
            block = selection.count // kv_heads
            take = draft.take_columns if name == names[3] else draft.take_rows
            take(name, TopRanked(kept * block, ranking, block))


def _head_selections(draft: Draft, names: tuple[str, str, str, str]) -> list[Selection]:
    """Where each matrix has its heads: rows of q, k and v, columns of o."""
    tensors = [draft.tensor(name) for name in names]
    return [*(tensor.rows for tensor in tensors[:3]), tensors[3].columns]


def _best_groups(
    draft: Draft, query: str, profile: Profile, heads: int, kv_heads: int, count: int
) -> Indices:
    source = source_matrix(draft, "prune_heads", query).name
    importance = profile.head_importance(source.removesuffix("q_proj.weight"), heads)
    # Running sums add in one order everywhere; NumPy's plain sum promises none.
    scores = importance.reshape(kv_heads, -1).cumsum(axis=1)[:, -1]
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int32)


def _expand(groups: Indices, size: int) -> Indices:
    """Indices of all rows of the groups, `size` each."""
    return (groups[:, None] * size + np.arange(size)).reshape(-1).astype(np.int32)
