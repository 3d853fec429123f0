"""The statistics of llama.cpp's perplexity report, from one number per scored position.

Numbers are in nats and as shares of 1, not in percent. Everything is summed in float64.

Source: the KL divergence report in `tools/perplexity/perplexity.cpp` of llama.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

# As in llama.cpp: fewer positions have no error bar, and fewer still no covariance.
MIN_FOR_ERROR = 11
MIN_FOR_COVARIANCE = 10

KLD_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)
DELTA_P_PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error, 0 where there are too few positions for one."""

    value: float
    stderr: float

    def to_json(self) -> dict[str, float | None]:
        """For `--json`; null for what is not a finite number."""
        return {"value": finite(self.value), "stderr": finite(self.stderr)}


@dataclass(frozen=True)
class Spread:
    """Where the values of a distribution lie.

    Attributes:
        percentiles: by percent, interpolated linearly at `f * (n - 1)`.
    """

    mean: Estimate
    maximum: float
    percentiles: dict[float, float]
    minimum: float

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "mean": self.mean.to_json(),
            "max": finite(self.maximum),
            "percentiles": {f"{percent:g}": finite(value) for percent, value in self.percentiles.items()},
            "min": finite(self.minimum),
        }


@dataclass(frozen=True)
class Perplexities:
    """Two perplexities of one text, and how they compare.

    The errors of ratio and difference take into account that both models find the same places hard.

    Attributes:
        candidate: exp of the mean negative log-probability under the candidate, `PPL(Q)`.
        reference: under the reference, `PPL(base)`.
        correlation: of the two log-perplexities; NaN where one of them does not vary.
        log_ratio: `ln(PPL(Q) / PPL(base))`.
        ratio: `PPL(Q) / PPL(base)`.
        difference: `PPL(Q) - PPL(base)`.
    """

    candidate: Estimate
    reference: Estimate
    correlation: float
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "candidate": self.candidate.to_json(),
            "reference": self.reference.to_json(),
            "correlation": finite(self.correlation),
            "log_ratio": self.log_ratio.to_json(),
            "ratio": self.ratio.to_json(),
            "difference": self.difference.to_json(),
        }


@dataclass(frozen=True)
class TokenProbabilities:
    """What became of the probability of the right token.

    Attributes:
        delta_p: candidate minus reference.
        rms: root of the mean square of that.
    """

    delta_p: Spread
    rms: Estimate

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"delta_p": self.delta_p.to_json(), "rms": self.rms.to_json()}


def finite(value: float) -> float | None:
    """The value, None where it is infinite or not a number: JSON knows neither."""
    return value if math.isfinite(value) else None


def mean(values: Numbers) -> Estimate:
    """The mean and its standard error, `sqrt(variance / (n - 1))` with the variance over n."""
    count = values.size
    if not count:
        return Estimate(math.nan, math.nan)
    center = math.fsum(values) / count
    variance = math.fsum((values - center) ** 2) / count
    return Estimate(center, math.sqrt(variance / (count - 1)) if count >= MIN_FOR_ERROR else 0.0)


def percentile(ordered: Numbers, percent: float) -> float:
    """The value at `percent / 100 * (n - 1)` of ascending values, between two of them linearly."""
    place = percent / 100 * (ordered.size - 1)
    below = int(place)
    above = min(below + 1, ordered.size - 1)
    share = place - below
    return float((1 - share) * ordered[below] + share * ordered[above])


def spread(values: Numbers, percentiles: tuple[float, ...]) -> Spread:
    """Mean, extremes and percentiles of at least one value."""
    ordered = np.sort(values)
    return Spread(
        mean(values),
        float(ordered[-1]),
        {percent: percentile(ordered, percent) for percent in percentiles},
        float(ordered[0]),
    )


def kl_divergences(kld: Numbers) -> Spread:
    """The divergences of llama.cpp's report from those of all positions `[n]`, n at least 1."""
    return spread(kld, KLD_PERCENTILES)


def perplexity(logprob: Numbers) -> Estimate:
    """Perplexity from the log-probabilities of the right tokens `[n]`."""
    loss = mean(-logprob)
    value = math.exp(loss.value) if loss.value < 700 else math.inf
    return Estimate(value, value * loss.stderr)


def perplexities(reference: Numbers, candidate: Numbers) -> Perplexities:
    """Both perplexities and how they compare.

    Args:
        reference: log-probabilities `[n]` of the right tokens.
        candidate: the same of the other model.
    """
    loss, base_loss = mean(-candidate), mean(-reference)
    covariance = _covariance(candidate, reference)
    errors = loss.stderr * base_loss.stderr
    log_ratio = Estimate(loss.value - base_loss.value, _error_of_difference(loss, base_loss, covariance))
    ppl, base = perplexity(candidate), perplexity(reference)
    ratio = math.exp(min(log_ratio.value, 700.0))
    return Perplexities(
        ppl,
        base,
        covariance / errors if errors else math.nan,
        log_ratio,
        Estimate(ratio, ratio * log_ratio.stderr),
        Estimate(
            ppl.value - base.value, _error_of_difference(ppl, base, ppl.value * base.value * covariance)
        ),
    )


def token_probabilities(reference: Numbers, candidate: Numbers) -> TokenProbabilities:
    """What became of the probability of the right token; arguments as for `perplexities`."""
    delta = np.exp(candidate) - np.exp(reference)
    square = mean(delta**2)
    rms = math.sqrt(square.value)
    return TokenProbabilities(
        spread(delta, DELTA_P_PERCENTILES), Estimate(rms, 0.5 / rms * square.stderr if rms else 0.0)
    )


def same_top(agrees: Flags) -> Estimate:
    """Share of positions `[n]` at which both models find the same token likeliest, with its error."""
    if not agrees.size:
        return Estimate(math.nan, math.nan)
    share = float(agrees.mean())
    return Estimate(share, math.sqrt(share * (1 - share) / (agrees.size - 1)) if agrees.size > 1 else 0.0)


def _covariance(first: Numbers, second: Numbers) -> float:
    """Covariance of the two means."""
    count = first.size
    if count < MIN_FOR_COVARIANCE:
        return 0.0
    products = (first - math.fsum(first) / count) * (second - math.fsum(second) / count)
    return math.fsum(products) / count / (count - 1)


def _error_of_difference(first: Estimate, second: Estimate, covariance: float) -> float:
    # Of equal models the sum is zero up to rounding, on either side.
    return math.sqrt(max(0.0, first.stderr**2 + second.stderr**2 - 2 * covariance))
