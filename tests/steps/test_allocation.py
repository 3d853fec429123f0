"""The knapsack: against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gemma_surgery.steps.allocation import Option, best_choices


def random_layers(seed: int, num_layers: int, num_options: int) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(num_layers):
        saved = np.concatenate([[0], np.cumsum(rng.integers(1, 4, num_options - 1))])
        cost = np.concatenate([[0.0], rng.uniform(0, 1, num_options - 1)])
        layers.append([Option(int(s), float(c)) for s, c in zip(saved, cost, strict=True)])
    return layers


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_saves_as_much_for_less(seed: int) -> None:
    layers = random_layers(seed, num_layers=5, num_options=4)
    front = best_choices(layers)
    everything = [
        (
            sum(options[i].saved_units for options, i in zip(layers, picks, strict=True)),
            sum(options[i].cost for options, i in zip(layers, picks, strict=True)),
        )
        for picks in itertools.product(*(range(len(options)) for options in layers))
    ]
    for needed in range(max(saved for saved, _ in everything) + 1):
        least = min(cost for saved, cost in everything if saved >= needed)
        picked = next(choice for choice in front if choice.saved_units >= needed)
        assert picked.cost == pytest.approx(least)


def test_a_choice_is_the_sum_of_its_options() -> None:
    layers = random_layers(3, num_layers=6, num_options=5)
    for choice in best_choices(layers):
        taken = [options[index] for options, index in zip(layers, choice.options, strict=True)]
        assert choice.saved_units == sum(option.saved_units for option in taken)
        assert choice.cost == pytest.approx(sum(option.cost for option in taken))


def test_the_front_rises_in_both() -> None:
    front = best_choices(random_layers(4, num_layers=7, num_options=5))
    assert [c.saved_units for c in front] == sorted({c.saved_units for c in front})
    assert [c.cost for c in front] == sorted(c.cost for c in front)
    assert front[0].saved_units == 0


def test_a_layer_without_options_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one option"):
        best_choices([[Option(0, 0.0)], []])
