"""`prune_neurons`: remove MLP neurons that contribute least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemma_surgery.calibration.profile import Profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import set_mlp_widths
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step, open_profile, source_matrix
from gemma_surgery.steps.compensation import Compensation, add_bias, chosen, reconstruct
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Quantized
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Indices, Scores, Selection, TopRanked


@dataclass(frozen=True)
class PruneNeurons(Step):
    """Keep the most important neurons of each unprotected decoder layer.

    Scores of neuron i: `activation`, the mean of |gelu(gate(x))| that a profile measured (Gemma-Prune,
    section 3.6); `wifv`, the fluctuation of its output that a profile measured times the squared norm of
    its column of down_proj (FLAP); `weights`, the product of its weight norms in gate, up and down.

    By activation, a layer of width d keeps, by Gemma-Prune's equation 18,
    ``max(floor(alive / g) * g, ceil((1 - max_ratio) * d / g) * g)`` neurons, where `alive` counts
    those whose score reaches `threshold` and g is `alignment`. The other scores say nothing about
    `threshold`, so every layer is cut by the whole `max_ratio`.

    Args:
        protect_first: decoder layers 0 to `protect_first - 1` are not touched.
        protected_layers: further layers that are not touched.
        threshold: mean absolute activation from which a neuron counts as alive.
        max_ratio: largest share of a layer's neurons that may go.
        widths: instead of `threshold` and `max_ratio`, how many neurons each decoder layer keeps.
        alignment: the remaining width is a multiple of this.
        granularity: `neuron` stores down_proj anew; `group` moves whole quantization groups of its
            columns, which is exact for what stays but chooses less finely.
        scores: see above; `auto` is `wifv` with a profile, else `weights`.
        compensation: what makes good for removed neurons. `columns`: the kept columns of down_proj become
            the least-squares fit of the whole product, and are rounded with error compensation; needs
            Hessians. `bias`: what the removed neurons added on average becomes a bias of down_proj, which
            only engines that know it add. `auto`: `columns` where the profile has Hessians and the
            granularity is `neuron`, else `none`.
        profile: a profile of this checkpoint (`docs/format.md`), default: the recipe's.
    """

    protect_first: int = 14
    protected_layers: tuple[int, ...] = ()
    threshold: float = 0.5
    max_ratio: float = 0.25
    widths: tuple[int, ...] = ()
    alignment: int = 64
    granularity: Literal["neuron", "group"] = "neuron"
    scores: Literal["auto", "activation", "wifv", "weights"] = "auto"
    compensation: Literal["auto", "none", "bias", "columns"] = "auto"
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Choose and remove neurons in every unprotected layer."""
        family = Gemma3(draft.config)
        self._check(family)
        profile = None if self.profile is None else open_profile(draft, self.profile)
        scores = self.scores
        if scores == "auto":
            scores = "weights" if profile is None else "wifv"
        layers = self._layers(family)
        downs = [source_matrix(draft, "prune_neurons", family.mlp(layer)[2]) for layer in layers]
        wanted = "none" if self.compensation == "auto" and self.granularity == "group" else self.compensation
        compensation = chosen(wanted, profile, downs)
        widths = family.mlp_widths
        for layer in layers:
            exact = self.widths[layer] if self.widths else None
            keep = self._prune_layer(draft, family.mlp(layer), scores, profile, exact)
            if keep < widths[layer] and profile is not None:
                self._compensate(draft, family, layer, compensation, profile)
            widths[layer] = keep
        set_mlp_widths(draft, widths)
        self._note(draft, scores, compensation)

    def _check(self, family: Gemma3) -> None:
        for parameter, value in (("scores", self.scores), ("compensation", self.compensation)):
            if self.profile is None and value in ("activation", "wifv", "bias", "columns"):
                raise SurgeryError(
                    "prune_neurons",
                    f'need `profile` for `{parameter} = "{value}"`, got none',
                    "make one with `gemma-surgery profile`, and give it with `--profile`",
                )
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

    def _layers(self, family: Gemma3) -> list[int]:
        """The layers that may lose neurons."""
        layers = range(self.protect_first, family.num_layers)
        free = [layer for layer in layers if layer not in self.protected_layers]
        if not self.widths:
            return free
        if len(self.widths) != family.num_layers:
            raise SurgeryError(
                "prune_neurons",
                f"need {family.num_layers} `widths`, one per decoder layer, got {len(self.widths)}",
            )
        cut = [layer for layer, width in enumerate(family.mlp_widths) if self.widths[layer] != width]
        held = sorted(set(cut) - set(free))
        if held:
            raise SurgeryError(
                "prune_neurons",
                f"need layer {held[0]} whole, which is protected, got a width of {self.widths[held[0]]}",
                "set `protect_first = 0` and leave `protected_layers` out",
            )
        return cut

    def _prune_layer(
        self,
        draft: Draft,
        names: tuple[str, str, str],
        scores: str,
        profile: Profile | None,
        exact: int | None,
    ) -> int:
        gate, up, down = (draft.tensor(name) for name in names)
        origins = [source_matrix(draft, "prune_neurons", name) for name in names]
        width = gate.rows.count
        if gate.rows.rankings:
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
        if exact is not None and (not 0 < exact < width or exact % align):
            raise SurgeryError(
                "prune_neurons",
                f"need a multiple of {align} up to {width}, got {exact} in `widths` for `{down.name}`",
            )
        choice: TopRanked | Indices
        keep = exact or remaining_width(width, 0, self.max_ratio, align)
        gate_name, up_name, down_name = (origin.name for origin in origins)
        if scores == "activation":
            assert profile is not None
            measured = profile.activation(gate_name.removesuffix("gate_proj.weight"), origins[0].rows)
            current = _current_scores(measured, gate.rows)
            alive = int(np.count_nonzero(current >= self.threshold))
            keep = exact or remaining_width(width, alive, self.max_ratio, align)
            choice = _best(current, keep, block)
        elif scores == "wifv":
            assert profile is not None
            linear = down_name.removesuffix(".weight")
            factor = profile.input_fluctuation(linear, origins[2].columns).astype("<f8").tobytes()
            choice = TopRanked(keep, Ranking((), (down_name, down_name), factor), block)
        else:
            choice = TopRanked(keep, Ranking((gate_name, up_name), (down_name,)), block)
        if keep < width:
            draft.take_rows(gate.name, choice)
            draft.take_rows(up.name, choice)
            draft.take_columns(down.name, choice)
        return keep

    def _compensate(
        self, draft: Draft, family: Gemma3, layer: int, compensation: Compensation, profile: Profile
    ) -> None:
        if compensation == "columns":
            reconstruct(draft, family.mlp(layer)[2], profile)
        elif compensation == "bias":
            add_bias(draft, family, layer, profile)

    def _note(self, draft: Draft, scores: str, compensation: Compensation) -> None:
        used = {
            "activation": "mean measured activations",
            "wifv": "measured fluctuation of their outputs and norms of down_proj",
            "weights": "weight norms",
        }[scores]
        draft.note(f"neurons scored by {used}")
        if self.widths:
            draft.note("widths as given, layer by layer")
        elif scores != "activation":
            draft.note(f"every unprotected layer is cut by max_ratio {self.max_ratio}")
        if compensation == "columns":
            draft.note("kept columns of down_proj fitted to the whole product, rounding compensated")
        elif compensation == "bias":
            draft.note("the mean of removed neurons is a bias of down_proj: other engines do not add it")


def remaining_width(width: int, alive: int, max_ratio: float, alignment: int) -> int:
    """Neurons that a layer keeps: Gemma-Prune, equation 18, never more than there are."""
    by_threshold = alive // alignment * alignment
    # Rounded before the ceiling: 0.8 * 10240 / 64 must not become 128.00000000000003.
    by_ratio = math.ceil(round((1 - max_ratio) * width / alignment, 9)) * alignment
    return min(width, max(by_threshold, by_ratio))


def _current_scores(scores: Scores, rows: Selection) -> Scores:
    indices = rows.resolve(_no_scores)
    if indices is None:
        return scores
    return np.where(indices >= 0, scores[np.maximum(indices, 0)], 0.0)


def _no_scores(ranking: Ranking) -> Scores:
    raise AssertionError(f"a selection without rankings asked for {ranking}")


def _best(scores: Scores, keep: int, block: int) -> Indices:
    """The `keep` highest scores as ascending indices, whole blocks at a time."""
    ranking = Ranking((), ())
    whole = Selection(len(scores)).take_top(TopRanked(keep, ranking, block))
    indices = whole.resolve(lambda _: scores)
    assert indices is not None
    return indices
