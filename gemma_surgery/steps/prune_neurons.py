"""`prune_neurons`: remove MLP neurons that contribute least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gemma_surgery.calibration.profile import Profile, read_profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import set_mlp_widths
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Quantized
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Indices, Selection, TopRanked
from gemma_surgery.surgery.tensor import SourceMatrix, Tensor


@dataclass(frozen=True)
class PruneNeurons(Step):
    """Keep the most active neurons of each unprotected decoder layer. Source: Gemma-Prune, section 3.6.

    With a profile, a layer of width d keeps, by equation 18,
    ``max(floor(alive / g) * g, ceil((1 - max_ratio) * d / g) * g)`` neurons, where `alive` counts
    those whose mean absolute gate activation reaches `threshold` and g is `alignment`. Without one
    the score of a neuron is the product of its weight norms in gate, up and down; norms say nothing
    about `threshold`, so every layer is cut by the whole `max_ratio`.

    Args:
        protect_first: decoder layers 0 to `protect_first - 1` are not touched.
        protected_layers: further layers that are not touched.
        threshold: mean absolute activation from which a neuron counts as alive.
        max_ratio: largest share of a layer's neurons that may go.
        alignment: the remaining width is a multiple of this.
        granularity: `neuron` requantizes down_proj; `group` moves whole quantization groups of its
            columns, which is exact for what stays but chooses less finely.
        scores: `profile`, `weights`, or `auto` for the profile if one is given.
        profile: a profile of this checkpoint (`docs/format.md`).
    """

    protect_first: int = 14
    protected_layers: tuple[int, ...] = ()
    threshold: float = 0.5
    max_ratio: float = 0.25
    alignment: int = 64
    granularity: Literal["neuron", "group"] = "neuron"
    scores: Literal["auto", "profile", "weights"] = "auto"
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Choose and remove neurons in every unprotected layer."""
        family = Gemma3(draft.config)
        self._check(family)
        profile = None
        if self.profile is not None and self.scores != "weights":
            profile = read_profile(Path(self.profile).expanduser(), draft.source.fingerprint)
        widths = family.mlp_widths
        for layer in range(family.num_layers):
            if layer >= self.protect_first and layer not in self.protected_layers:
                widths[layer] = self._prune_layer(draft, family.mlp(layer), profile)
        set_mlp_widths(draft, widths)
        used = f"activations of `{Path(self.profile).name}`" if profile and self.profile else "weight norms"
        draft.note(f"neurons scored by {used}")
        if profile is None:
            draft.note(f"no profile: every unprotected layer is cut by max_ratio {self.max_ratio}")

    def _check(self, family: Gemma3) -> None:
        if self.scores == "profile" and self.profile is None:
            raise SurgeryError("prune_neurons", 'need `profile` for `scores = "profile"`, got none')
        if not 0 <= self.max_ratio < 1:
            raise SurgeryError("prune_neurons", f"need `max_ratio` in [0, 1), got {self.max_ratio}")
        if self.alignment < 1:
            raise SurgeryError("prune_neurons", f"need a positive `alignment`, got {self.alignment}")
        outside = [layer for layer in self.protected_layers if not 0 <= layer < family.num_layers]
        if outside or not 0 <= self.protect_first <= family.num_layers:
            raise SurgeryError(
                "prune_neurons",
                f"need protected layers within 0..{family.num_layers - 1}, got "
                f"{outside or self.protect_first}",
                f"the checkpoint has {family.num_layers} decoder layers at this point of the recipe",
            )

    def _prune_layer(self, draft: Draft, names: tuple[str, str, str], profile: Profile | None) -> int:
        gate, up, down = (draft.tensor(name) for name in names)
        width = gate.rows.count
        if not isinstance(gate.origin, SourceMatrix) or gate.rows.rankings:
            raise SurgeryError(
                "prune_neurons", f"need neurons that were not pruned by scores before, got `{gate.name}`"
            )
        align, block = self.alignment, 1
        if self.granularity == "group":
            block = down.encoding.group_size if isinstance(down.encoding, Quantized) else align
            align = math.lcm(align, block)
        if isinstance(down.encoding, Quantized) and align % down.encoding.group_size:
            raise SurgeryError(
                "prune_neurons",
                f"need an alignment divisible by group size {down.encoding.group_size} of `{down.name}`, "
                f"got `alignment = {self.alignment}`",
            )
        if profile is None:
            keep = remaining_width(width, 0, self.max_ratio, align)
            origins = (gate.origin.name, _origin(up), _origin(down))
            choice: TopRanked | Indices = TopRanked(keep, Ranking(origins[:2], origins[2:]), block)
        else:
            scores = _current_scores(profile, gate.origin, gate.rows)
            alive = int(np.count_nonzero(scores >= self.threshold))
            keep = remaining_width(width, alive, self.max_ratio, align)
            choice = _best(scores, keep, block)
        if keep < width:
            draft.take_rows(gate.name, choice)
            draft.take_rows(up.name, choice)
            draft.take_columns(down.name, choice)
        return keep


def remaining_width(width: int, alive: int, max_ratio: float, alignment: int) -> int:
    """Neurons that a layer keeps: Gemma-Prune, equation 18, never more than there are."""
    by_threshold = alive // alignment * alignment
    # Rounded before the ceiling: 0.8 * 10240 / 64 must not become 128.00000000000003.
    by_ratio = math.ceil(round((1 - max_ratio) * width / alignment, 9)) * alignment
    return min(width, max(by_threshold, by_ratio))


def _current_scores(profile: Profile, gate: SourceMatrix, rows: Selection) -> np.ndarray:
    prefix = gate.name.removesuffix("gate_proj.weight")
    scores = profile.activation(prefix, gate.rows)
    indices = rows.resolve(_no_scores)
    if indices is None:
        return scores
    return np.where(indices >= 0, scores[np.maximum(indices, 0)], 0.0)


def _no_scores(ranking: Ranking) -> np.ndarray:
    raise AssertionError(f"a selection without rankings asked for {ranking}")


def _best(scores: np.ndarray, keep: int, block: int) -> Indices:
    """The `keep` highest scores as ascending indices, whole blocks at a time."""
    ranking = Ranking((), ())
    whole = Selection(len(scores)).take_top(TopRanked(keep, ranking, block))
    indices = whole.resolve(lambda _: scores)
    assert indices is not None
    return indices


def _origin(tensor: Tensor) -> str:
    if not isinstance(tensor.origin, SourceMatrix):
        raise SurgeryError("prune_neurons", f"need a tensor of the source, got `{tensor.name}`")
    return tensor.origin.name
