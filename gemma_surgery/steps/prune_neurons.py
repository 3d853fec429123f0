"""`prune_neurons`: remove MLP neurons that contribute least."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gemma_surgery.calibration.profile import Profile
from gemma_surgery.errors import MissingProfileError, SurgeryError
from gemma_surgery.families.edit import set_mlp_widths
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.allocation import Option, best_choices
from gemma_surgery.steps.base import Step, open_profile, source_matrix
from gemma_surgery.steps.compensation import Compensation, add_bias, chosen, reconstruct
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Quantized
from gemma_surgery.surgery.ranking import Ranking
from gemma_surgery.surgery.selection import Indices, Scores, Selection, TopRanked
from gemma_surgery.surgery.tensor import Tensor

# Of a layer's neurons, at most this share goes when layers share out what goes.
MOST_GLOBAL = 0.75
LEAST_SHARE = 1e-12


@dataclass(frozen=True)
class PruneNeurons(Step):
    """Keep the most important neurons of the decoder layers.

    Scores of neuron i: `activation`, the mean of |gelu(gate(x))| that a profile measured (Gemma-Prune,
    section 3.6); `wifv`, the fluctuation of its output that a profile measured times the squared norm of
    its column of down_proj (FLAP); `weights`, the product of its weight norms in gate, up and down.

    By activation, a layer of width d keeps, by Gemma-Prune's equation 18,
    ``max(floor(alive / g) * g, ceil((1 - max_ratio) * d / g) * g)`` neurons, where `alive` counts
    those whose score reaches `threshold` and g is `alignment`. The other scores say nothing about
    `threshold`, so the whole of `max_ratio` goes.

    Args:
        protect_first: decoder layers 0 to `protect_first - 1` are not touched, unless `structure` is global.
        protected_layers: further layers that are not touched, whatever the structure.
        threshold: mean absolute activation from which a neuron counts as alive.
        max_ratio: largest share of a layer's neurons that may go; with a global structure, of those of all
            unprotected layers.
        widths: instead of `threshold` and `max_ratio`, how many neurons each decoder layer keeps.
        alignment: the remaining width is a multiple of this.
        granularity: `neuron` stores down_proj anew; `group` moves whole quantization groups of its
            columns, which is exact for what stays but chooses less finely.
        structure: `layers` cuts every unprotected layer alike; `global` removes as many neurons in all, but
            wherever they add least, so that `protect_first` only says how many. `auto` is `global` with a
            profile that knows what neurons add and scores by `wifv`, else `layers`.
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
    structure: Literal["auto", "layers", "global"] = "auto"
    scores: Literal["auto", "activation", "wifv", "weights"] = "auto"
    compensation: Literal["auto", "none", "bias", "columns"] = "auto"
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Choose and remove neurons."""
        family = Gemma3(draft.config)
        self._check(family)
        profile = None if self.profile is None else open_profile(draft, self.profile)
        scores = self.scores
        if scores == "auto":
            scores = "weights" if profile is None else "wifv"
        is_global = self._is_global(draft, family, scores, profile)
        given = self._spread(draft, family, profile) if is_global and profile is not None else self.widths
        layers = self._layers(family, given, is_global)
        downs = [source_matrix(draft, "prune_neurons", family.mlp(layer)[2]) for layer in layers]
        wanted = "none" if self.compensation == "auto" and self.granularity == "group" else self.compensation
        compensation = chosen(wanted, profile, downs)
        widths = family.mlp_widths
        for layer in layers:
            exact = given[layer] if given else None
            keep = self._prune_layer(draft, family, layer, scores, profile, exact)
            if keep < widths[layer] and profile is not None:
                self._compensate(draft, family, layer, compensation, profile)
            widths[layer] = keep
        set_mlp_widths(draft, widths)
        self._note(draft, scores, compensation, is_global)

    def _check(self, family: Gemma3) -> None:
        for parameter, value in (("scores", self.scores), ("compensation", self.compensation)):
            if self.profile is None and value in ("activation", "wifv", "bias", "columns"):
                raise MissingProfileError(
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

    def _free(self, family: Gemma3) -> list[int]:
        """The layers that are not protected."""
        layers = range(self.protect_first, family.num_layers)
        return [layer for layer in layers if layer not in self.protected_layers]

    def _is_global(self, draft: Draft, family: Gemma3, scores: str, profile: Profile | None) -> bool:
        """Whether layers share out what goes."""
        if self.structure == "layers" or self.widths or profile is None or scores != "wifv":
            if self.structure == "global":
                kind = MissingProfileError if profile is None and not self.widths else SurgeryError
                raise kind(
                    "prune_neurons",
                    'need `scores = "wifv"` with a profile and no `widths` for `structure = "global"`',
                )
            return False
        downs = [family.mlp(layer)[2] for layer in range(family.num_layers)]
        origins = [source_matrix(draft, "prune_neurons", down) for down in downs]
        known = all(profile.has_output_share(origin.name.removesuffix(".weight")) for origin in origins)
        return known or self.structure == "global"

    def _spread(self, draft: Draft, family: Gemma3, profile: Profile) -> tuple[int, ...]:
        """Widths that lose as many neurons as the rule for each layer would, wherever they add least."""
        widths = family.mlp_widths
        aligns = [self._align(draft, family, layer) for layer in range(family.num_layers)]
        unit = math.gcd(*aligns)
        cut = 0
        for layer in self._free(family):
            cut += widths[layer] - remaining_width(widths[layer], 0, self.max_ratio, aligns[layer])
        options: list[list[Option]] = []
        for layer, (width, align) in enumerate(zip(widths, aligns, strict=True)):
            most = 0 if layer in self.protected_layers else int(width * MOST_GLOBAL) // align
            gate, _, down = _unranked(draft, family, layer)
            origin = source_matrix(draft, "prune_neurons", down.name)
            shares = profile.output_share(origin.name.removesuffix(".weight"), origin.columns)
            # No neuron is quite free: of choices that add nothing, the one that removes least is the best.
            lost = np.cumsum(np.sort(_current_scores(shares, gate.rows)) + LEAST_SHARE)
            options.append(
                [
                    Option(parts * align // unit, float(lost[parts * align - 1]) if parts else 0.0)
                    for parts in range(most + 1)
                ]
            )
        choice = next((c for c in best_choices(options) if c.saved_units * unit >= cut), None)
        if choice is None:
            raise SurgeryError(
                "prune_neurons",
                f"need {cut:,} neurons to remove, got too few in layers that are not protected",
                "protect fewer layers, or lower `max_ratio`",
            )
        return tuple(
            width - layer_options[index].saved_units * unit
            for width, layer_options, index in zip(widths, options, choice.options, strict=True)
        )

    def _align(self, draft: Draft, family: Gemma3, layer: int) -> int:
        """What the width of a layer is a multiple of."""
        encoding = draft.tensor(family.mlp(layer)[2]).encoding
        if self.granularity == "neuron" or not isinstance(encoding, Quantized):
            return self.alignment
        return math.lcm(self.alignment, encoding.group_size)

    def _layers(self, family: Gemma3, given: tuple[int, ...], is_global: bool) -> list[int]:
        """The layers that lose neurons, or with the rule for each layer those that may."""
        free = self._free(family)
        if not given:
            return free
        if len(given) != family.num_layers:
            raise SurgeryError(
                "prune_neurons",
                f"need {family.num_layers} `widths`, one per decoder layer, got {len(given)}",
            )
        cut = [layer for layer, width in enumerate(family.mlp_widths) if given[layer] != width]
        held = [] if is_global else sorted(set(cut) - set(free))
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
        family: Gemma3,
        layer: int,
        scores: str,
        profile: Profile | None,
        exact: int | None,
    ) -> int:
        gate, up, down = _unranked(draft, family, layer)
        origins = [source_matrix(draft, "prune_neurons", name) for name in family.mlp(layer)]
        width = gate.rows.count
        align, block = self._align(draft, family, layer), 1
        if self.granularity == "group":
            block = down.encoding.group_size if isinstance(down.encoding, Quantized) else align
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

    def _note(self, draft: Draft, scores: str, compensation: Compensation, is_global: bool) -> None:
        used = {
            "activation": "mean measured activations",
            "wifv": "measured fluctuation of their outputs and norms of down_proj",
            "weights": "weight norms",
        }[scores]
        draft.note(f"neurons scored by {used}")
        if self.widths:
            draft.note("widths as given, layer by layer")
        elif is_global:
            widths = Gemma3(draft.config).mlp_widths
            draft.note(f"shared out over all layers by what they add: {', '.join(map(str, widths))}")
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


def _unranked(draft: Draft, family: Gemma3, layer: int) -> list[Tensor]:
    """gate, up and down of a layer, none of whose neurons went by scores that are only known later."""
    tensors = [draft.tensor(name) for name in family.mlp(layer)]
    if tensors[0].rows.rankings:
        raise SurgeryError(
            "prune_neurons",
            f"need neurons that were not pruned by scores before, got `{tensors[0].name}`",
        )
    return tensors


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
