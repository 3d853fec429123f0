"""The search against costs that are known: what it proposes, what it measures, what it refuses."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from gemma_surgery.checkpoint.model_folder import open_checkpoint
from gemma_surgery.cli.search import parse_size
from gemma_surgery.demo_model import demo_model_path
from gemma_surgery.errors import SurgeryError
from gemma_surgery.recipes.recipe import Recipe, load_recipe, make_plan
from gemma_surgery.search.journal import Measured
from gemma_surgery.search.search import Goal, measurements, search
from gemma_surgery.search.space import Point, Space, toml_of, untouched

SMALL = ("reduce_resolution.image_size=168",)
# Nats for half of a layer's neurons: what a measurement would find.
LAYER_COSTS = (0.9, 0.05, 0.4, 0.01, 0.3, 0.8, 0.02, 0.1)
DROP_COST = 0.5


@pytest.fixture(scope="module")
def space() -> Space:
    return Space(open_checkpoint(demo_model_path("4bit")), load_recipe("mobile", SMALL))


@dataclass
class Known:
    """Costs that add up, but for what `interaction` says."""

    space: Space
    interaction: float = 0.0
    asked: list[Point] = field(default_factory=list)

    def cost(self, point: Point) -> float:
        kept = self.space.kept_layers(point.dropped)
        alone = [
            LAYER_COSTS[layer] * (parts / 4) ** 2 for layer, parts in zip(kept, point.parts, strict=True)
        ]
        return 0.001 + DROP_COST * point.dropped + sum(alone) + self.interaction * sum(alone) ** 2

    def __call__(self, point: Point) -> Measured:
        self.asked.append(point)
        return Measured(self.space.size_bytes(point), self.cost(point), 0.0)


def uniform(space: Space, parts: int) -> Point:
    return Point(0, (parts,) * space.num_layers)


def test_the_best_recipe_is_within_the_budget_and_beats_equal_widths(space: Space) -> None:
    known = Known(space)
    equal = uniform(space, 2)
    found = search(space, Goal(target_bytes=space.size_bytes(equal)), known)
    assert found.measured.size_bytes <= space.size_bytes(equal)
    assert found.measured.kl < 0.5 * known.cost(equal)
    cheap = [layer for layer in range(8) if LAYER_COSTS[layer] < 0.06]
    assert all(found.best.parts[layer] == 4 for layer in cheap)


def test_costs_that_do_not_add_up_are_mended_by_measuring(space: Space) -> None:
    known = Known(space, interaction=1.5)
    goal = Goal(target_bytes=space.size_bytes(uniform(space, 2)))
    assert (
        search(space, goal, known, rounds=12).measured.kl <= search(space, goal, known, rounds=0).measured.kl
    )


def test_a_limit_of_divergence_is_met_with_fewer_bytes(space: Space) -> None:
    known = Known(space)
    found = search(space, Goal(max_kl=0.2), known)
    assert found.measured.kl <= 0.2
    assert found.measured.size_bytes < space.size_bytes(untouched(8))
    within = [m.size_bytes for m in found.points.values() if m.kl <= 0.2]
    assert found.measured.size_bytes == min(within)


def test_the_same_search_asks_the_same_and_no_more_than_it_said(space: Space) -> None:
    first, second = Known(space), Known(space)
    goal = Goal(target_bytes=space.size_bytes(uniform(space, 3)))
    assert search(space, goal, first).best == search(space, goal, second).best
    assert first.asked == second.asked
    assert len(first.asked) <= measurements(space, rounds=12)


def test_the_front_holds_nothing_that_another_beats(space: Space) -> None:
    found = search(space, Goal(max_kl=0.3), Known(space))
    front = found.front()
    for point in found.points:
        mine = found.points[point]
        beaten = any(
            other.size_bytes <= mine.size_bytes and other.kl < mine.kl for other in found.points.values()
        )
        assert (point in front) <= (not beaten)
    document = found.to_json(space)
    assert document["kl"] == found.measured.kl
    points = document["points"]
    assert isinstance(points, list)
    assert sum(isinstance(p, dict) and p["best"] is True for p in points) == 1


@pytest.mark.parametrize("goal", [Goal(target_bytes=1000), Goal(max_kl=1e-6)])
def test_a_budget_out_of_reach_names_the_nearest(space: Space, goal: Goal) -> None:
    with pytest.raises(SurgeryError, match=r"need .*, got .* (at the smallest|without any cut)"):
        search(space, goal, Known(space))


def test_the_recipe_that_is_written_gives_the_checkpoint_that_was_measured(space: Space, tmp_path) -> None:
    point = Point(1, (0, 1, 2, 3, 4, 0, 0))
    path = tmp_path / "found.toml"
    path.write_text(toml_of(space.recipe(point), 'a "best" one'))
    again: Recipe = load_recipe(str(path))
    assert make_plan(space.source, again).output_bytes == space.size_bytes(point)
    assert [name for name, _ in again.steps][-1] == "split_weights"


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("1.5GiB", 3 << 29), ("900 MB", 900_000_000), ("12345", 12345), ("1KiB", 1024)]
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "big", "1.5 parsecs", "-3MB"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(SurgeryError, match="need a size"):
        parse_size(text)
