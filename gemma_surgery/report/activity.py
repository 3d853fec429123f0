"""What a profile says about neurons and layers, small enough to lie in a page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemma_surgery.calibration.heatmap import COLOURS, HIGHEST, LOWEST, picture
from gemma_surgery.calibration.profile import ACTIVATION, FINGERPRINT_KEY, INFLUENCE, Profile, read_profile
from gemma_surgery.checkpoint.header import read_header
from gemma_surgery.errors import SurgeryError
from gemma_surgery.report.fields import WHERE

MAX_COLUMNS = 320
# As `prune_neurons` counts by default.
THRESHOLD = 0.5
LEVELS = 65535

Floats = npt.NDArray[np.float64]

_MLP = re.compile(rf"^(.*\.layers\.(\d+)\.)mlp\.{ACTIVATION}$")


@dataclass(frozen=True)
class LayerActivity:
    """One decoder layer.

    Attributes:
        index: in the profiled checkpoint.
        activations: mean absolute activation per neuron, `[F]`, from most to least active.
        influence: 1 minus the mean cosine of the layer's input and output; None if it was not measured.
    """

    index: int
    activations: Floats
    influence: float | None

    @property
    def active_share(self) -> float:
        """Share of neurons at `THRESHOLD` or above."""
        return float(np.count_nonzero(self.activations >= THRESHOLD) / len(self.activations))


@dataclass(frozen=True)
class Activity:
    """Neurons of all layers.

    Attributes:
        layers: in order.
        num_tokens: that were measured on, 0 if the profile does not say.
        of_source: whether the original was profiled, and not the output.
        sha256: of the profile.
    """

    layers: tuple[LayerActivity, ...]
    num_tokens: int
    of_source: bool
    sha256: str

    @property
    def num_columns(self) -> int:
        """Cells per layer of the heatmap."""
        return min(MAX_COLUMNS, *(len(layer.activations) for layer in self.layers))

    @property
    def cells(self) -> str:
        """Means of ranges of neurons on a logarithmic scale, base64 of little-endian uint16 `[L, columns]`.

        Level 0 is `LOWEST` or less, `LEVELS` is `HIGHEST` or more; cell c of F neurons covers those from
        `floor(c F / columns)` to before `floor((c + 1) F / columns)`.
        """
        low, high = np.log(LOWEST), np.log(HIGHEST)
        rows = []
        for layer in self.layers:
            starts = np.arange(self.num_columns) * len(layer.activations) // self.num_columns
            stops = np.append(starts[1:], len(layer.activations))
            means = np.add.reduceat(layer.activations, starts) / (stops - starts)
            level = (np.log(np.maximum(means, LOWEST)) - low) / (high - low)
            rows.append(np.rint(np.clip(level, 0, 1) * LEVELS).astype("<u2"))
        return base64.b64encode(np.stack(rows).tobytes()).decode("ascii")

    @property
    def still_picture(self) -> str:
        """The same as a PNG, in a data URI: for readers without scripts."""
        image = picture([layer.activations for layer in self.layers], THRESHOLD)
        data = io.BytesIO()
        image.quantize(48).save(data, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")


# What the page's script colours by, and how it reads levels.
SCALE: dict[str, str | float] = {
    "lowest": LOWEST,
    "highest": HIGHEST,
    "levels": LEVELS,
    "colours": ";".join(",".join(map(str, colour)) for colour in COLOURS),
}


def read_activity(path: Path, source_fingerprint: str, own_fingerprint: str) -> Activity:
    """Read a profile of the original or of the output.

    Raises:
        SurgeryError: malformed, of another checkpoint, or without activations.
    """
    header = read_header(path)
    of_source = header.metadata.get(FINGERPRINT_KEY) != own_fingerprint
    profile = read_profile(path, source_fingerprint if of_source else own_fingerprint)
    layers = [
        _layer(profile, match, info.shape)
        for name, info in header.tensors.items()
        if (match := _MLP.match(name))
    ]
    if not layers:
        raise SurgeryError(WHERE, f"need activations of neurons, got none in `{path.name}`")
    ordered = tuple(sorted(layers, key=lambda layer: layer.index))
    return Activity(ordered, profile.num_tokens, of_source, profile.sha256)


def _layer(profile: Profile, match: re.Match[str], shape: tuple[int, ...]) -> LayerActivity:
    prefix = match[1]
    width = shape[0] if len(shape) == 1 else 0
    values = profile.activation(f"{prefix}mlp.", width)
    if not len(values):
        raise SurgeryError(WHERE, f"need at least one neuron, got none in layer {match[2]} of the profile")
    influence = None
    if f"{prefix}{INFLUENCE}" in profile.header.tensors:
        influence = profile.block_influence(prefix)
    return LayerActivity(int(match[2]), np.sort(values)[::-1], influence)
