"""Stored tensors grouped into logical matrices: codes, scales and biases are one thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.checkpoint.model_folder import Checkpoint, StoredTensor
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.encoding import MICROSCALING, Dense, Quantized, companion, components
from gemma_surgery.surgery.tensor import SourceMatrix, Tensor


def logical_matrices(checkpoint: Checkpoint) -> dict[str, SourceMatrix]:
    """Every logical matrix of a checkpoint by its full tensor name, in file order.

    Raises:
        SurgeryError: a quantized tensor whose parts disagree with each other or with the
            `quantization` block of config.json.
    """
    stored = checkpoint.tensors
    matrices: dict[str, SourceMatrix] = {}
    claimed: set[str] = set()
    for name, tensor in stored.items():
        scales = stored.get(companion(name, "scales"))
        if not name.endswith(".weight") or tensor.dtype != "U32" or scales is None:
            continue
        matrix = _quantized(name, tensor, scales, checkpoint.config)
        for part in matrix.components:
            found = stored.get(part.name)
            if found is None or (found.dtype, found.shape) != (part.dtype, part.shape):
                got = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise SurgeryError(
                    "checkpoint",
                    f"need {part.dtype} {list(part.shape)} for {matrix.encoding.describe()}, got {got} "
                    f"in `{part.name}` of `{tensor.file}`",
                )
            claimed.add(part.name)
        matrices[name] = matrix
    return {
        name: matrices.get(name) or SourceMatrix(name, tensor.shape, Dense(tensor.dtype))
        for name, tensor in stored.items()
        if name in matrices or name not in claimed
    }


def quantization_of(config: Mapping[str, Json], name: str) -> tuple[int, int, str]:
    """Bits, group size and mode that config.json states for the quantized tensor `name`.

    Raises:
        SurgeryError: there is no `quantization` block, or it is not as MLX writes it.
    """
    block = config.get("quantization", config.get("quantization_config"))
    if not isinstance(block, dict):
        raise SurgeryError(
            "checkpoint",
            f"need a `quantization` block in `config.json` for the packed tensor `{name}`, got none",
            'MLX writes e.g. `"quantization": {"group_size": 64, "bits": 4}`',
        )
    own = block.get(name.removesuffix(".weight"))
    entry = own if isinstance(own, dict) else block
    mode = entry.get("mode", block.get("mode", "affine"))
    default_bits, default_group = MICROSCALING.get(str(mode), (None, None))
    bits, group = entry.get("bits", default_bits), entry.get("group_size", default_group)
    if not isinstance(bits, int) or not isinstance(group, int) or not isinstance(mode, str):
        raise SurgeryError(
            "checkpoint",
            f"need integer `bits` and `group_size` in the `quantization` block of `config.json`, "
            f"got {bits!r} and {group!r} for `{name}`",
        )
    return bits, group, mode


def quantization_block(tensors: Iterable[Tensor]) -> dict[str, Json] | None:
    """The `quantization` block that MLX's loaders need: the commonest encoding, then the exceptions.

    Exceptions are keyed by module path. None when nothing is quantized.
    """
    encodings = {t.name: t.encoding for t in tensors if isinstance(t.encoding, Quantized)}
    if not encodings:
        return None
    settings = {name: _settings(encoding) for name, encoding in encodings.items()}
    common = Counter(settings.values()).most_common(1)[0][0]
    block: dict[str, Json] = dict(common)
    for name, own in settings.items():
        if own != common:
            block[name.removesuffix(".weight")] = dict(own)
    return block


def _settings(encoding: Quantized) -> tuple[tuple[str, Json], ...]:
    base: tuple[tuple[str, Json], ...] = (("group_size", encoding.group_size), ("bits", encoding.bits))
    return base if encoding.has_biases else (*base, ("mode", encoding.mode))


def _quantized(
    name: str, weight: StoredTensor, scales: StoredTensor, config: Mapping[str, Json]
) -> SourceMatrix:
    bits, group_size, mode = quantization_of(config, name)
    encoding = Quantized(bits, group_size, "BF16" if scales.dtype == "U8" else scales.dtype, mode)
    if len(weight.shape) != 2:
        raise SurgeryError("checkpoint", f"need 2 dimensions, got {list(weight.shape)} in `{name}`")
    rows, words = weight.shape
    columns = words * 32 // bits
    if columns % group_size or components(name, (rows, columns), encoding)[1].shape != scales.shape:
        raise SurgeryError(
            "checkpoint",
            f"need [{rows}, {columns // group_size}] scales for {encoding.describe()} as config.json states, "
            f"got {list(scales.shape)} in `{companion(name, 'scales')}`",
        )
    return SourceMatrix(name, (rows, columns), encoding)
