"""What a profile measures of one layer, as sums over samples.

Sources: Gemma-Prune, equation 15 (activations); FLAP, arXiv 2312.11983, and its released code (means and
fluctuations); GPTQ, arXiv 2210.17323 (Hessians); ShortGPT, arXiv 2403.03853 (block influence).
"""

from __future__ import annotations

from collections.abc import Callable
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

# Tokens collected before the Hessian is touched: fewer passes over a matrix far beyond every cache.
HESSIAN_TOKENS = 1024
# Rows of the Hessian computed at a time.
HESSIAN_ROWS = 1024


class Tap(Module):
    """A linear layer whose inputs and outputs are looked at."""

    def __init__(self, inner: Linear, look: Look) -> None:
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
    """

    def __init__(self) -> None:
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
        means = ranks.gather(np.stack(self._means)).astype(np.float64)
        scatters = ranks.gather(np.stack(self._scatters)).astype(np.float64)
        counts = ranks.gather(np.asarray(self._counts)[:, None])
        numbers = np.arange(1, len(means) + 1)[:, None]
        running = np.cumsum(means, axis=0) / numbers
        around = scatters + counts * np.square(means - running)
        fluctuation = ((numbers - 1) / numbers * around).sum(axis=0) / max(len(means) - 1, 1)
        return running[-1], fluctuation


class Hessian:
    """`sum over tokens of x x^T` of the inputs of a linear layer, upper triangle, in float32.

    Args:
        width: F.
    """

    def __init__(self, width: int) -> None:
        self._sum = np.zeros((width, width), np.float32)
        self._waiting: list[mx.array] = []
        self._num_waiting = 0

    def add(self, x: mx.array) -> None:
        """Inputs `[T, F]`, evaluated soon after."""
        x = x.astype(mx.float32)
        mx.eval(x)
        self._waiting.append(x)
        self._num_waiting += x.shape[0]
        if self._num_waiting >= HESSIAN_TOKENS:
            self._flush()

    def result(self, ranks: Ranks, num_tokens: float) -> npt.NDArray[np.float32]:
        """The mean over the tokens of all ranks, `[F, F]`; only the upper triangle is valid."""
        self._flush()
        total = ranks.sum_large(self._sum)
        total /= np.float32(num_tokens)
        return total

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
    """

    def __init__(
        self,
        ranks: Ranks,
        wants_hessian: Callable[[str], bool],
        on_result: Callable[[str, npt.NDArray[np.generic]], None],
    ) -> None:
        self._ranks, self._wants_hessian, self._on_result = ranks, wants_hessian, on_result

    def begin(self, site: Site, layer: Module) -> None:
        """Start anew and listen to the layer's products."""
        self._tokens = 0.0
        self._influence = 0.0
        self._sums: dict[str, Values] = {}
        self._moments: dict[str, ChannelMoments] = {}
        self._hessians: dict[str, Hessian] = {}
        self._prefix = site.prefix
        if site.part == "text":
            attention, mlp = layer.self_attn, layer.mlp
            mlp.gate_proj = Tap(mlp.gate_proj, self._activation)
            mlp.down_proj = Tap(mlp.down_proj, self._inputs(f"{site.prefix}mlp.down_proj"))
            attention.o_proj = self._listen_to_heads(attention.o_proj, attention._heads, "self_attn.o_proj")
        else:
            layer.fc1 = Tap(layer.fc1, self._activation)
            layer.fc2 = Tap(layer.fc2, self._inputs(f"{site.prefix}mlp.fc2"))
            layer.out_proj = self._listen_to_heads(layer.out_proj, layer._heads, "self_attn.out_proj")

    def sample(self, before: mx.array, after: mx.array) -> None:
        """Count the tokens of a sample and how far the layer turned them."""
        x, y = before.astype(mx.float32), after.astype(mx.float32)
        cosine = (x * y).sum(axis=-1) * mx.rsqrt(mx.square(x).sum(axis=-1) * mx.square(y).sum(axis=-1))
        self._influence += float(np.asarray((1 - cosine).sum()))
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
        for linear in sorted(self._hessians):
            hessian = self._hessians.pop(linear).result(self._ranks, tokens)
            for name, part in profile.pack_hessian(linear, hessian):
                self._on_result(name, part)

    def _give(self, name: str, values: Values) -> None:
        self._on_result(name, values.astype(np.float32))

    def _add(self, name: str, values: mx.array) -> None:
        part = np.asarray(values.astype(mx.float32)).astype(np.float64)
        self._sums[name] = self._sums[name] + part if name in self._sums else part

    def _activation(self, _: mx.array, gate: mx.array) -> None:
        active = mx.abs(ops.gelu_tanh(gate.astype(mx.float32))).sum(axis=(0, 1))
        self._add(f"{self._prefix}mlp.{profile.ACTIVATION}", active)

    def _inputs(self, linear: str) -> Look:
        moments = self._moments[linear] = ChannelMoments()

        def look(x: mx.array, _: mx.array) -> None:
            x = x.reshape(-1, x.shape[-1])
            moments.add(x)
            if self._wants_hessian(linear):
                if linear not in self._hessians:
                    self._hessians[linear] = Hessian(x.shape[-1])
                self._hessians[linear].add(x)

        return look

    def _listen_to_heads(self, linear: Linear, heads: int, name: str) -> Tap:
        look_at_inputs = self._inputs(self._prefix + name)
        matrix = linear.matrix.take(mx.arange(linear.matrix.weight.shape[0]), mx.float32)
        columns = matrix.shape[1] // heads
        prefix = self._prefix

        def look(x: mx.array, y: mx.array) -> None:
            look_at_inputs(x, y)
            flat = x.reshape(-1, x.shape[-1]).astype(mx.float32)
            parts = [slice(head * columns, (head + 1) * columns) for head in range(heads)]
            norms = [mx.square(ops.linear(flat[:, part], matrix[:, part])).sum() for part in parts]
            self._add(f"{prefix}self_attn.{profile.HEADS}", mx.stack(norms))

        return Tap(linear, look)
