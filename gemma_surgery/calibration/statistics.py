"""What a profile measures of one layer, as sums over samples.

Sources: Gemma-Prune, equation 15 (activations); FLAP, arXiv 2312.11983, and its released code (means and
fluctuations); GPTQ, arXiv 2210.17323 (Hessians); ShortGPT, arXiv 2403.03853 (block influence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.nn.layers.base import Module

from gemma_surgery import ops
from gemma_surgery.calibration import profile
from gemma_surgery.calibration.ranks import Ranks
from gemma_surgery.models.layers import Linear

if TYPE_CHECKING:
    from gemma_surgery.calibration.stream import Site

Values: TypeAlias = "npt.NDArray[np.float64]"
Look: TypeAlias = "Callable[[mx.array, mx.array], None]"
# By part of the model: where this rank's samples (or images) stand among those of all ranks.
Places: TypeAlias = "Mapping[str, Sequence[float]]"

# Tokens collected before the Hessian is touched: fewer passes over a matrix far beyond every cache.
HESSIAN_TOKENS = 1024
# Rows of the Hessian computed at a time.
HESSIAN_ROWS = 1024
# Channels whose moments are put together at a time.
MOMENT_CHANNELS = 1024
# Rows of a matrix decoded at a time.
MATRIX_ROWS = 512
# Squared norms below this count as zero.
TINY = 1e-30


class Tap(Module):
    """A linear layer whose inputs and outputs are looked at."""

    def __init__(self, inner: Linear | Tap, look: Look) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self._look = look

    def __call__(self, x: mx.array) -> mx.array:
        """`[..., in]` -> `[..., out]`."""
        y = self.inner(x)
        self._look(x, y)
        return y


class ChannelMoments:
    """Mean and fluctuation of the inputs of a linear layer, channel by channel.

    FLAP keeps a running mean of the samples' means, `mu_n`, and sums what tokens differ from it:
    `F = 1 / (n - 1) * sum_{k >= 2} (k - 1) / k * sum_t (x_kt - mu_k)^2`. The closed form of it needs mean and
    scatter of every sample, which add up over machines.

    Args:
        width: F.
        places: of the samples among those of all ranks.
    """

    def __init__(self, width: int, places: Sequence[float]) -> None:
        self._width, self._places = width, places
        self._means: list[npt.NDArray[np.float32]] = []
        self._scatters: list[npt.NDArray[np.float32]] = []
        self._counts: list[float] = []

    def add(self, x: mx.array) -> None:
        """Inputs `[T, F]` of one sample."""
        x = x.astype(mx.float32)
        mean = x.mean(axis=0)
        self._means.append(np.asarray(mean))
        self._scatters.append(np.asarray(mx.square(x - mean).sum(axis=0)))
        self._counts.append(float(x.shape[0]))

    def results(self, ranks: Ranks) -> tuple[Values, Values]:
        """FLAP's baseline and fluctuation over the samples of all ranks, `[F]` each."""
        places = self._places[: len(self._counts)]
        counts = ranks.gather(np.asarray(self._counts).reshape(-1, 1), places)
        numbers = np.arange(1, len(counts) + 1)[:, None]
        baseline, fluctuation = np.empty(self._width), np.empty(self._width)

        def gathered(rows: list[npt.NDArray[np.float32]], channels: slice) -> Values:
            own = np.asarray([row[channels] for row in rows], np.float64)
            width = channels.stop - channels.start
            return ranks.gather(own.reshape(len(rows), width), places).astype(np.float64)

        for first in range(0, self._width, MOMENT_CHANNELS):
            channels = slice(first, min(first + MOMENT_CHANNELS, self._width))
            means = gathered(self._means, channels)
            running = np.cumsum(means, axis=0) / numbers
            around = gathered(self._scatters, channels) + counts * np.square(means - running)
            baseline[channels] = running[-1]
            weighted = ((numbers - 1) / numbers * around).sum(axis=0)
            fluctuation[channels] = weighted / max(len(counts) - 1, 1)
        return baseline, fluctuation


class Hessian:
    """The weighted mean over tokens of `x x^T` of the inputs of a linear layer, in float32.

    Args:
        memory: float32 `[F, F]`, overwritten.
    """

    def __init__(self, memory: npt.NDArray[np.float32]) -> None:
        memory[:] = 0
        self._sum = memory
        self._weights = 0.0
        self._count = 0
        self._waiting: list[mx.array] = []
        self._num_waiting = 0

    def add(self, x: mx.array, weights: mx.array | None) -> None:
        """Inputs `[T, F]`, evaluated soon after, and what each token counts `[T]`; None: 1."""
        x = x.astype(mx.float32)
        if weights is not None:
            x = x * mx.sqrt(weights)[:, None]
            self._weights += float(np.asarray(weights, np.float64).sum())
        else:
            self._weights += x.shape[0]
        mx.eval(x)
        self._count += x.shape[0]
        self._waiting.append(x)
        self._num_waiting += x.shape[0]
        if self._num_waiting >= HESSIAN_TOKENS:
            self._flush()

    def result(self, ranks: Ranks) -> tuple[npt.NDArray[np.float32], int]:
        """Over the tokens of all ranks, `[F, F]`, only the upper triangle valid, and how many they are."""
        self._flush()
        total = ranks.sum_large(self._sum)
        weights, count = ranks.sum(np.asarray([self._weights, self._count]))
        total /= np.float32(max(weights, TINY))
        return total, int(count)

    def _flush(self) -> None:
        if not self._waiting:
            return
        # Rows of both factors are channels: what `linear` multiplies.
        channels = mx.contiguous(mx.concatenate(self._waiting).T)
        self._waiting, self._num_waiting = [], 0
        width = len(self._sum)
        for first in range(0, width, HESSIAN_ROWS):
            rows = slice(first, min(first + HESSIAN_ROWS, width))
            self._sum[rows, first:] += np.asarray(ops.linear(channels[rows], channels[first:]))


class LayerStatistics:
    """Observes one layer after the other and hands each one's results on.

    Args:
        ranks: the machines that share the samples.
        wants_hessian: whether to collect the Hessian of a linear layer, by module path.
        on_result: told of every statistic by tensor name.
        places: of this rank's samples and images among all.
    """

    def __init__(
        self,
        ranks: Ranks,
        wants_hessian: Callable[[str], bool],
        on_result: Callable[[str, npt.NDArray[np.generic]], None],
        places: Places,
    ) -> None:
        self._ranks, self._wants_hessian, self._on_result = ranks, wants_hessian, on_result
        self._places = places
        self._buffers: list[npt.NDArray[np.float32]] = []

    def begin(self, site: Site, layer: Module) -> None:
        """Start anew and listen to the layer's products."""
        self._tokens = 0.0
        self._influence = 0.0
        self._sums: dict[str, Values] = {}
        self._moments: dict[str, ChannelMoments] = {}
        self._hessians: dict[str, Hessian] = {}
        self._column_squares: dict[str, Values] = {}
        self._prefix, self._part = site.prefix, site.part
        # Everything has its size from the start: a rank without images takes part in the sums over all ranks.
        if site.part == "text":
            attention, mlp = layer.self_attn, layer.mlp
            mlp.gate_proj = self._listen_to_activations(mlp.gate_proj)
            self._column_squares[f"{site.prefix}mlp.down_proj"] = _column_squares(mlp.down_proj)
            mlp.down_proj = self._listen_to_inputs(mlp.down_proj, "mlp.down_proj")
            attention.o_proj = self._listen_to_heads(attention.o_proj, attention._heads, "self_attn.o_proj")
        else:
            layer.fc1 = self._listen_to_activations(layer.fc1)
            layer.fc2 = self._listen_to_inputs(layer.fc2, "mlp.fc2")
            layer.out_proj = self._listen_to_heads(layer.out_proj, layer._heads, "self_attn.out_proj")

    def sample(self, before: mx.array, after: mx.array) -> None:
        """Count the tokens of a sample and how far the layer turned them."""
        # Half the squared distance of unit vectors is 1 - cosine, without the cancellation.
        distance = mx.square(_unit(before) - _unit(after)).sum(axis=-1) / 2
        self._influence += float(np.asarray(distance, np.float64).sum())
        self._tokens += before.shape[0] * before.shape[1]

    def end(self) -> None:
        """Combine what all ranks saw and hand it on."""
        tokens = float(self._ranks.sum(np.asarray([self._tokens]))[0])
        influence = self._ranks.sum(np.asarray([self._influence])) / tokens
        self._give(f"{self._prefix}{profile.INFLUENCE}", influence)
        for name, values in sorted(self._sums.items()):
            self._give(name, self._ranks.sum(values) / tokens)
        for linear, moments in sorted(self._moments.items()):
            mean, fluctuation = moments.results(self._ranks)
            self._give(f"{linear}.{profile.INPUT_MEAN}", mean)
            self._give(f"{linear}.{profile.FLUCTUATION}", fluctuation)
            if linear in self._column_squares:
                added = fluctuation * self._column_squares[linear]
                self._give(f"{linear}.{profile.OUTPUT_SHARE}", added / max(added.sum(), TINY))
        for linear in sorted(self._hessians):
            hessian, count = self._hessians.pop(linear).result(self._ranks)
            for name, part in profile.pack_hessian(linear, hessian, count):
                self._on_result(name, part)

    def _give(self, name: str, values: Values) -> None:
        self._on_result(name, values.astype(np.float32))

    def _add(self, name: str, values: mx.array) -> None:
        self._sums[name] += np.asarray(values.astype(mx.float32))

    def _memory(self, width: int) -> npt.NDArray[np.float32]:
        """`[F, F]` for one more Hessian of this layer; reused, since the first touch of new pages is slow."""
        index, size = len(self._hessians), width * width
        if index == len(self._buffers):
            self._buffers.append(np.empty(size, np.float32))
        if self._buffers[index].size < size:
            self._buffers[index] = np.empty(size, np.float32)
        return self._buffers[index][:size].reshape(width, width)

    def _listen_to_activations(self, linear: Linear) -> Tap:
        name = f"{self._prefix}mlp.{profile.ACTIVATION}"
        self._sums[name] = np.zeros(linear.matrix.weight.shape[0])

        def look(_: mx.array, gate: mx.array) -> None:
            self._add(name, mx.abs(ops.gelu_tanh(gate.astype(mx.float32))).sum(axis=(0, 1)))

        return Tap(linear, look)

    def _listen_to_inputs(self, linear: Linear, name: str) -> Tap:
        path, width = self._prefix + name, _columns(linear)
        moments = self._moments[path] = ChannelMoments(width, self._places[self._part])
        hessian = Hessian(self._memory(width)) if self._wants_hessian(path) else None
        if hessian is not None:
            self._hessians[path] = hessian

        is_normed = self._part == "text"

        def look(x: mx.array, y: mx.array) -> None:
            x = x.reshape(-1, width)
            moments.add(x)
            if hessian is not None:
                hessian.add(x, _relative(y) if is_normed else None)

        return Tap(linear, look)

    def _listen_to_heads(self, linear: Linear, heads: int, name: str) -> Tap:
        tap = self._listen_to_inputs(linear, name)
        matrix = linear.matrix.take(mx.arange(linear.matrix.weight.shape[0]), mx.float32)
        columns = matrix.shape[1] // heads
        slices = [slice(head * columns, (head + 1) * columns) for head in range(heads)]
        # |W x|^2 = sum of (W^T W) * (x x^T): a tenth of the work of the product, where E is ten times D.
        inner = [_outer_sum(matrix[:, part]) for part in slices]
        mx.eval(inner)
        importance = f"{self._prefix}self_attn.{profile.HEADS}"
        self._sums[importance] = np.zeros(heads)

        def look(x: mx.array, _: mx.array) -> None:
            flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
            added = [(w * _outer_sum(flat[:, part])).sum() for part, w in zip(slices, inner, strict=True)]
            self._add(importance, mx.stack(added))

        return Tap(tap, look)


def _relative(y: mx.array) -> mx.array:
    """What tokens count whose outputs `[..., E]` a norm scales to one size: 1 / mean square, `[T]`.

    An output of zero stays zero, and counts nothing.
    """
    y = y.reshape(-1, y.shape[-1]).astype(mx.float32)
    mean = mx.square(y).mean(axis=-1)
    return mx.where(mean > TINY, 1 / mx.maximum(mean, TINY), 0)


def _outer_sum(rows: mx.array) -> mx.array:
    """`[n, D]` -> the sum of the rows' outer products, `[D, D]`."""
    channels = mx.contiguous(rows.T)
    return ops.linear(channels, channels)


def _columns(linear: Linear) -> int:
    matrix = linear.matrix
    return int(matrix.scales.shape[1] * matrix.group_size if matrix.bits else matrix.weight.shape[1])


def _column_squares(linear: Linear) -> Values:
    """Squared norm of each column of the matrix, `[F]`."""
    rows, squares = linear.matrix.weight.shape[0], np.zeros(_columns(linear))
    for first in range(0, rows, MATRIX_ROWS):
        part = linear.matrix.take(mx.arange(first, min(first + MATRIX_ROWS, rows)), mx.float32)
        squares += np.asarray(mx.square(part).sum(axis=0))
    return squares


def _unit(x: mx.array) -> mx.array:
    x = x.astype(mx.float32)
    return x * mx.rsqrt(mx.maximum(mx.square(x).sum(axis=-1, keepdims=True), TINY))
