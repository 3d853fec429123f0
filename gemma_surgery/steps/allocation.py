"""Choosing one option per layer so that the costs add up to the least for every number of saved units.

The multiple-choice knapsack, solved exactly: costs are taken to be additive, which is the assumption that the
search tests by measuring what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Option:
    """What can be done to one layer.

    Attributes:
        saved_units: how much smaller it gets, in units that all layers share; 0 or more.
        cost: what it costs, in nats of divergence.
    """

    saved_units: int
    cost: float


@dataclass(frozen=True)
class Choice:
    """One option of every layer.

    Attributes:
        options: indices into each layer's options.
        saved_units: sum over layers.
        cost: sum over layers.
    """

    options: tuple[int, ...]
    saved_units: int
    cost: float


def best_choices(layers: Sequence[Sequence[Option]]) -> list[Choice]:
    """The Pareto front, smallest saving first: no other choice saves as much for less.

    Args:
        layers: options of each layer, at least one each.

    Raises:
        ValueError: a layer without options.
    """
    if any(not options for options in layers):
        raise ValueError("need at least one option per layer")
    most = sum(max(option.saved_units for option in options) for options in layers)
    costs = np.full(most + 1, np.inf)
    costs[0] = 0.0
    picks: list[npt.NDArray[np.int32]] = []
    for options in layers:
        after = np.full(most + 1, np.inf)
        pick = np.zeros(most + 1, np.int32)
        for index, option in enumerate(options):
            saved = option.saved_units
            moved = np.full(most + 1, np.inf)
            moved[saved:] = costs[: most + 1 - saved] + option.cost
            # Of equal costs the earlier option stays: the same choice everywhere.
            better = moved < after
            after[better], pick[better] = moved[better], index
        costs = after
        picks.append(pick)
    front: list[Choice] = []
    cheapest = np.inf
    for saved in range(most, -1, -1):
        if costs[saved] < cheapest:
            cheapest = float(costs[saved])
            front.append(Choice(_trace(layers, picks, saved), saved, cheapest))
    return front[::-1]


def _trace(
    layers: Sequence[Sequence[Option]], picks: Sequence[npt.NDArray[np.int32]], saved: int
) -> tuple[int, ...]:
    chosen: list[int] = []
    for options, pick in zip(reversed(layers), reversed(picks), strict=True):
        index = int(pick[saved])
        chosen.append(index)
        saved -= options[index].saved_units
    return tuple(reversed(chosen))
