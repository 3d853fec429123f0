"""From a base recipe to the one that costs least under a budget, and the Pareto front on the way.

First changes are made alone and measured: each layer at two widths, each number of dropped layers. Costs are
then taken to add up, which makes the best combination for every size a knapsack (`allocation`). What it
proposes around the budget is made and measured as a whole, then improved by moves between pairs of layers;
the best that was measured is the result. Nothing is drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.errors import SurgeryError
from gemma_surgery.search.journal import Measured
from gemma_surgery.search.space import MOST_PARTS, PARTS, Point, Space, alone, untouched
from gemma_surgery.steps.allocation import Choice, Option, best_choices

# Eighths at which a layer is measured; costs between and around them follow a power of the share.
MEASURED_PARTS = (2, 4)
# Budgets between the smallest and the largest checkpoint whose best proposal is measured for the front.
FRONT_POINTS = 6
LEAST_COST = 1e-9

Measure = Callable[[Point], Measured]


@dataclass(frozen=True)
class Goal:
    """What is looked for: exactly one of both.

    Attributes:
        target_bytes: tensor bytes at most, at the least divergence.
        max_kl: divergence at most, in nats, at the fewest bytes.
    """

    target_bytes: int | None = None
    max_kl: float | None = None

    def better(self, one: Measured, other: Measured | None) -> bool:
        """Whether `one` fulfils the goal and is better than `other`."""
        if not self.is_met(one):
            return False
        if other is None:
            return True
        if self.max_kl is not None:
            return (one.size_bytes, one.kl) < (other.size_bytes, other.kl)
        return (one.kl, one.size_bytes) < (other.kl, other.size_bytes)

    def is_met(self, measured: Measured) -> bool:
        """Whether a checkpoint fulfils the goal."""
        if self.max_kl is not None:
            return measured.kl <= self.max_kl
        return self.target_bytes is not None and measured.size_bytes <= self.target_bytes


@dataclass
class Found:
    """What a search found.

    Attributes:
        best: the point that fulfils the goal best.
        measured: of it.
        points: everything that was measured as a whole.
        alone: what single changes cost: layer (-1: dropped layers), eighths or number, measurement.
        base: the base recipe's own measurement.
    """

    best: Point
    measured: Measured
    base: Measured
    points: dict[Point, Measured] = field(default_factory=dict)
    alone: list[tuple[int, int, Measured]] = field(default_factory=list)

    def front(self) -> list[Point]:
        """Measured points that no other beats in both size and divergence, the smallest first."""
        front: list[Point] = []
        for point in sorted(self.points, key=lambda p: (self.points[p].size_bytes, self.points[p].kl)):
            if not front or self.points[point].kl < self.points[front[-1]].kl:
                front.append(point)
        return front

    def to_json(self, space: Space) -> dict[str, Json]:
        """For `--json` and the report."""
        front = self.front()
        points: list[Json] = [
            {
                "bytes": measured.size_bytes,
                "kl": measured.kl,
                "kl_stderr": measured.stderr,
                "label": point.label,
                "pareto": point in front,
                "best": point == self.best,
            }
            for point, measured in sorted(self.points.items(), key=lambda item: item[1].size_bytes)
        ]
        sensitivity: list[Json] = [
            {
                "step": "drop_layers" if layer < 0 else "prune_neurons",
                "layer": None if layer < 0 else layer,
                "dropped": number if layer < 0 else 0,
                "width": None if layer < 0 else space.width(layer, number),
                "kl": measured.kl - self.base.kl,
                "bytes": self.base.size_bytes - measured.size_bytes,
            }
            for layer, number, measured in self.alone
        ]
        return {
            "bytes": self.measured.size_bytes,
            "kl": self.measured.kl,
            "kl_stderr": self.measured.stderr,
            "base_kl": self.base.kl,
            "points": points,
            "sensitivity": sensitivity,
        }


def measurements(space: Space, rounds: int) -> int:
    """How many checkpoints a search makes and measures at most."""
    singles = len(MEASURED_PARTS) * space.num_layers + len(space.droppable())
    return singles + len(space.droppable()) + FRONT_POINTS + rounds


def search(space: Space, goal: Goal, measure: Measure, rounds: int = 12) -> Found:
    """Find the best point of a space.

    Args:
        space: what may change.
        goal: what is wanted.
        measure: makes and measures the checkpoint of a point; deterministic.
        rounds: moves between pairs of layers that are tried around the best proposal.

    Raises:
        SurgeryError: nothing in the space fulfils the goal, with the nearest that was measured.
    """
    base = measure(untouched(space.num_layers))
    found = Found(untouched(space.num_layers), base, base, {untouched(space.num_layers): base})
    options = _layer_options(space, measure, base, found)
    drops = _drop_costs(space, measure, base, found)
    fronts = {dropped: _front(space, options, dropped) for dropped in drops}
    best: Point | None = None
    for point in _proposals(space, goal, fronts, drops, base):
        found.points[point] = measure(point)
        if goal.better(found.points[point], found.points.get(best) if best else None):
            best = point
    for point in _spread(space, fronts, drops):
        found.points[point] = measure(point)
        if goal.better(found.points[point], found.points.get(best) if best else None):
            best = point
    if best is None:
        raise _unreachable(goal, found)
    found.best = _improve(space, goal, measure, found, best, rounds)
    found.measured = found.points[found.best]
    return found


def _layer_options(space: Space, measure: Measure, base: Measured, found: Found) -> list[list[Option]]:
    """Every eighth of every layer, with measured or interpolated cost."""
    options: list[list[Option]] = []
    for layer in range(space.num_layers):
        costs: dict[int, float] = {}
        for parts in MEASURED_PARTS:
            measured = measure(alone(space.num_layers, layer, parts))
            found.alone.append((layer, parts, measured))
            costs[parts] = max(measured.kl - base.kl, LEAST_COST)
        low, high = MEASURED_PARTS
        power = math.log(costs[high] / costs[low]) / math.log(high / low)
        power = min(max(power, 1.0), 4.0)
        options.append(
            [
                Option(
                    (space.widths[layer] - space.width(layer, parts)) // space.alignment,
                    costs.get(parts, costs[high] * (parts / high) ** power) if parts else 0.0,
                )
                for parts in range(MOST_PARTS + 1)
            ]
        )
    return options


def _drop_costs(space: Space, measure: Measure, base: Measured, found: Found) -> dict[int, float]:
    costs: dict[int, float] = {}
    for dropped in space.droppable():
        if dropped == 0:
            costs[0] = 0.0
            continue
        point = untouched(space.num_layers, dropped)
        measured = measure(point)
        found.points[point] = measured
        found.alone.append((-1, dropped, measured))
        costs[dropped] = max(measured.kl - base.kl, 0.0)
    return costs


def _front(space: Space, options: list[list[Option]], dropped: int) -> list[Choice]:
    return best_choices([options[layer] for layer in space.kept_layers(dropped)])


def _proposals(
    space: Space,
    goal: Goal,
    fronts: dict[int, list[Choice]],
    drops: dict[int, float],
    base: Measured,
) -> list[Point]:
    """For each number of dropped layers what should fulfil the goal best, the most promising first."""
    proposals: list[tuple[float, Point]] = []
    for dropped, front in fronts.items():
        sizes = _sizes(space, dropped, front)
        if goal.target_bytes is not None:
            fitting = [i for i, size in enumerate(sizes) if size <= goal.target_bytes]
            picked = fitting[:1]
        else:
            assert goal.max_kl is not None
            room = goal.max_kl - base.kl - drops[dropped]
            picked = [i for i, choice in enumerate(front) if choice.cost <= room][-1:]
        for index in picked:
            rank = drops[dropped] + front[index].cost if goal.max_kl is None else float(sizes[index])
            proposals.append((rank, Point(dropped, front[index].options)))
    return [point for _, point in sorted(proposals, key=lambda item: item[0])]


def _spread(space: Space, fronts: dict[int, list[Choice]], drops: dict[int, float]) -> list[Point]:
    """The cheapest choice for budgets spread over what can be reached."""
    all_points = [
        (size, drops[dropped] + choice.cost, Point(dropped, choice.options))
        for dropped, front in fronts.items()
        for size, choice in zip(_sizes(space, dropped, front), front, strict=True)
    ]
    smallest, largest = min(p[0] for p in all_points), max(p[0] for p in all_points)
    picked: list[Point] = []
    for number in range(FRONT_POINTS):
        budget = smallest + (largest - smallest) * number / FRONT_POINTS
        _, _, point = min((p for p in all_points if p[0] <= budget), key=lambda p: (p[1], p[0]))
        if point not in picked:
            picked.append(point)
    return picked


def _sizes(space: Space, dropped: int, front: list[Choice]) -> list[int]:
    """Bytes of each choice: a unit is as large in every layer, so two plans tell."""
    whole = space.size_bytes(untouched(space.num_layers, dropped))
    last = front[-1]
    if last.saved_units == 0:
        return [whole]
    unit = (whole - space.size_bytes(Point(dropped, last.options))) / last.saved_units
    return [math.ceil(whole - unit * choice.saved_units) for choice in front]


def _improve(space: Space, goal: Goal, measure: Measure, found: Found, best: Point, rounds: int) -> Point:
    """Move an eighth from one layer to another as long as that helps, the most promising pairs first."""
    tried = 0
    tabu: set[tuple[int, int]] = set()
    while tried < rounds:
        move = _next_move(space, found, best, tabu)
        if move is None:
            break
        narrower, wider = move
        tabu.add(move)
        parts = list(best.parts)
        parts[narrower] += 1
        parts[wider] -= 1
        point = Point(best.dropped, tuple(parts))
        if point in found.points:
            continue
        tried += 1
        found.points[point] = measure(point)
        if goal.better(found.points[point], found.points[best]):
            best = point
            tabu.clear()
    return best


def _next_move(space: Space, found: Found, best: Point, tabu: set[tuple[int, int]]) -> tuple[int, int] | None:
    """The layer to narrow and the layer to widen whose measured slopes differ most."""
    slopes = {layer: measured.kl for layer, parts, measured in found.alone if parts == PARTS // 2}
    kept = space.kept_layers(best.dropped)
    pairs = [
        (slopes[kept[narrower]] - slopes[kept[wider]], narrower, wider)
        for narrower in range(len(kept))
        for wider in range(len(kept))
        if narrower != wider
        and best.parts[narrower] < MOST_PARTS
        and best.parts[wider] > 0
        and (narrower, wider) not in tabu
    ]
    return min(pairs)[1:] if pairs else None


def _unreachable(goal: Goal, found: Found) -> SurgeryError:
    smallest = min(found.points.values(), key=lambda m: m.size_bytes)
    lowest = min(found.points.values(), key=lambda m: m.kl)
    if goal.max_kl is not None:
        wanted, got = f"a divergence of at most {goal.max_kl:g}", f"{lowest.kl:.4g} without any cut of layers"
    else:
        wanted, got = f"at most {goal.target_bytes:,} bytes", f"{smallest.size_bytes:,} at the smallest"
    return SurgeryError(
        "search",
        f"need {wanted}, got {got}",
        "change the budget, or give a base recipe with fewer bits or a smaller vocabulary",
    )
