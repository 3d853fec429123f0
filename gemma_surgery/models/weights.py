"""The tensors of a checkpoint as MLX arrays, each weight file opened when a tensor of it is first wanted."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from gemma_surgery.checkpoint.model_folder import Checkpoint
from gemma_surgery.checkpoint.reading import SourceFiles
from gemma_surgery.errors import SurgeryError
from gemma_surgery.surgery.anatomy import logical_matrices
from gemma_surgery.surgery.encoding import Encoding

MLX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
STORED_DTYPES = {**MLX_DTYPES, "U32": mx.uint32}


class Weights:
    """Lazy arrays by tensor name.

    Args:
        checkpoint: an opened checkpoint.
        dtype: what activations are computed in; biases and norms are converted to it.
        activations: how many bits of them enter products with quantized matrices on a CPU: ``full``,
            ``int16`` or ``int8``, see `gemma_surgery.ops.quantized_linear`.

    Attributes:
        opened: weight files opened so far, in order.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: mx.Dtype, activations: str = "full") -> None:
        self.checkpoint, self.dtype, self.activations = checkpoint, dtype, activations
        self.matrices = logical_matrices(checkpoint)
        self.opened: list[str] = []
        self._arrays: dict[str, mx.array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.matrices

    def encoding(self, name: str) -> Encoding:
        """How the logical matrix is stored."""
        return self.matrices[name].encoding

    def stored(self, name: str) -> mx.array:
        """A tensor as it lies in the file, not read before it is evaluated."""
        tensor = self.checkpoint.tensors[name]
        file, stored_name = tensor.file, tensor.name_in_file
        if file not in self.opened:
            self.opened.append(file)
            try:
                self._arrays |= self._load(file)
            except RuntimeError as error:
                raise SurgeryError("model", f"cannot load `{self.checkpoint.path / file}`: {error}") from None
        return self._arrays.pop(stored_name) if stored_name in self._arrays else self._load(file)[stored_name]

    def stored_rows(self, name: str, rows: npt.NDArray[np.integer]) -> mx.array:
        """Some rows of a tensor as they lie in the file; the others are not read.

        Args:
            name: of a stored tensor of two dimensions.
            rows: their numbers, in any order.

        Returns:
            `[len(rows), columns]`.
        """
        tensor = self.checkpoint.tensors[name]
        row_bytes = tensor.size_bytes // tensor.shape[0]
        data = np.empty((len(rows), row_bytes), np.uint8)
        with SourceFiles(self.checkpoint) as files:
            for place, row in enumerate(rows):
                files.read_into(tensor.file, tensor.start + int(row) * row_bytes, memoryview(data[place]))
        return mx.array(data).view(STORED_DTYPES[tensor.dtype])

    def values(self, name: str) -> mx.array:
        """A dense tensor in the dtype of activations."""
        return self.stored(name).astype(self.dtype)

    def exact(self, name: str) -> mx.array:
        """A dense tensor in float32, whatever the dtype of activations."""
        return self.stored(name).astype(mx.float32)

    def release(self) -> None:
        """Let go of the arrays that nobody took and of their open files."""
        self._arrays.clear()

    def _load(self, file: str) -> dict[str, mx.array]:
        arrays = mx.load(str(self.checkpoint.path / file), stream=mx.cpu)
        assert isinstance(arrays, dict)
        return arrays
