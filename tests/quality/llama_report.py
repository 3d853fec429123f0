"""llama.cpp's KL divergence report computed the long way: sums over Python floats, one position at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def log_probabilities(logits: Sequence[float]) -> list[float]:
    largest = max(logits)
    total = math.fsum(math.exp(value - largest) for value in logits)
    return [value - largest - math.log(total) for value in logits]


def mean_and_uncertainty(values: Sequence[float]) -> tuple[float, float]:
    """As the report does it: from the sums of values and of their squares."""
    count = len(values)
    mean = math.fsum(values) / count
    variance = math.fsum(value * value for value in values) / count - mean * mean
    return mean, math.sqrt(variance / (count - 1)) if variance > 0 and count > 10 else 0.0


def covariance(first: Sequence[float], second: Sequence[float]) -> float:
    count = len(first)
    both = math.fsum(a * b for a, b in zip(first, second, strict=True)) / count
    return (both - math.fsum(first) / count * (math.fsum(second) / count)) / (count - 1)


def percentile(values: Sequence[float], fraction: float) -> float:
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    index = int(place)
    share = place - index
    return (1 - share) * ordered[index] + share * ordered[min(index + 1, len(ordered) - 1)]


def report(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], right: Sequence[int]
) -> dict[str, float]:
    """Every figure of the report, from logits `[n][V]` of both models and the right tokens `[n]`."""
    p = [log_probabilities(row) for row in base]
    q = [log_probabilities(row) for row in other]
    kld = [
        math.fsum(math.exp(a) * (a - b) for a, b in zip(mine, its, strict=True))
        for mine, its in zip(p, q, strict=True)
    ]
    nll_base = [-row[token] for row, token in zip(p, right, strict=True)]
    nll = [-row[token] for row, token in zip(q, right, strict=True)]
    delta = [math.exp(-a) - math.exp(-b) for a, b in zip(nll, nll_base, strict=True)]
    found: dict[str, float] = {}
    found["kld"], found["kld_error"] = mean_and_uncertainty(kld)
    for percent in (99.9, 99, 95, 90, 50, 10, 5, 1, 0.1):
        found[f"kld_{percent:g}"] = percentile(kld, percent / 100)
    found["kld_max"], found["kld_min"] = max(kld), min(kld)
    log_ppl, log_ppl_error = mean_and_uncertainty(nll)
    log_base, log_base_error = mean_and_uncertainty(nll_base)
    both = covariance(nll, nll_base)
    found["ppl"], found["ppl_error"] = math.exp(log_ppl), math.exp(log_ppl) * log_ppl_error
    found["base"], found["base_error"] = math.exp(log_base), math.exp(log_base) * log_base_error
    found["correlation"] = both / (log_ppl_error * log_base_error)
    found["log_ratio"] = log_ppl - log_base
    found["log_ratio_error"] = math.sqrt(log_ppl_error**2 + log_base_error**2 - 2 * both)
    found["ratio"] = math.exp(found["log_ratio"])
    found["ratio_error"] = found["ratio"] * found["log_ratio_error"]
    found["difference"] = found["ppl"] - found["base"]
    found["difference_error"] = math.sqrt(
        found["ppl_error"] ** 2 + found["base_error"] ** 2 - 2 * found["ppl"] * found["base"] * both
    )
    found["delta_p"], found["delta_p_error"] = mean_and_uncertainty(delta)
    for percent in (99.9, 99, 95, 90, 75, 50, 25, 10, 5, 1, 0.1):
        found[f"delta_p_{percent:g}"] = percentile(delta, percent / 100)
    found["delta_p_max"], found["delta_p_min"] = max(delta), min(delta)
    square, square_error = mean_and_uncertainty([value * value for value in delta])
    found["rms"], found["rms_error"] = math.sqrt(square), 0.5 / math.sqrt(square) * square_error
    same = [mine.index(max(mine)) == its.index(max(its)) for mine, its in zip(p, q, strict=True)]
    share = sum(same) / len(same)
    found["same_top"], found["same_top_error"] = share, math.sqrt(share * (1 - share) / (len(same) - 1))
    return found
