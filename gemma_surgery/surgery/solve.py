"""Values that second moments of a linear's inputs decide: reconstructed columns and compensated rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gemma_surgery.checkpoint.json_types import Json
from gemma_surgery.surgery import solver
from gemma_surgery.surgery.encoding import Dense, Encoding, Quantized, components
from gemma_surgery.surgery.kernels import Bytes, as_bytes, convert
from gemma_surgery.surgery.selection import Indices
from gemma_surgery.surgery.transform import Values

# Share of the mean of the diagonal that is added to it. Source: GPTQ, section 3.3.
DAMPING = 0.01
# Before rounding, correlations shrink by this share: what is frequent in calibration data is not what an
# answer depends on most. On the small trained model it lowers the divergence that is left by a tenth.
SHRINKAGE = 0.1
# Columns with the largest inputs first: what later columns can make good weighs most.
ORDER: solver.Order = "activation"


class Hessians(Protocol):
    """A profile, as far as a solve needs one."""

    @property
    def sha256(self) -> str:
        """Identity of the profile."""
        ...

    def hessian_count(self, linear: str) -> int:
        """Inputs that the mean is over."""
        ...

    def hessian(self, linear: str, width: int) -> Values:
        """Mean over tokens of `x x^T` of the linear's inputs, a new float32 `[width, width]`."""
        ...


@dataclass(frozen=True, eq=False)
class Solve:
    """How a matrix makes good for lost columns and for rounding, by the inputs it was measured on.

    Args:
        profile: where the Hessian comes from; it is read when the matrix is produced, and let go.
        linear: module path of the matrix in the profiled checkpoint.
        reconstruct: replace the kept columns by the least-squares fit of the whole product.
        compensate: round column by column, each error spread over the columns to come (GPTQ);
            otherwise to the nearest.
    """

    profile: Hessians
    linear: str
    reconstruct: bool
    compensate: bool

    def run(self, weight: Values, kept: Indices | None, encoding: Encoding) -> list[Bytes]:
        """The stored parts of the solved matrix.

        Memory: twice the weight, the Hessian of all columns, and what the solver needs beside them:
        at most the size of another two Hessians.

        Args:
            weight: float32 `[rows, width]`, all columns of the source.
            kept: int32 columns that remain; None for all.
            encoding: how to store them.

        Raises:
            ValueError: a value is not finite.
            SurgeryError: the profile cannot be read.
        """
        if not np.isfinite(weight).all():
            raise ValueError("need finite values, got others")
        compensated = self.compensate and isinstance(encoding, Quantized)
        hessian = None
        if compensated or (self.reconstruct and kept is not None):
            hessian = self.profile.hessian(self.linear, weight.shape[1])
            solver.shrink(hessian, solver.shrinkage(self.profile.hessian_count(self.linear), len(hessian)))
        if kept is not None:
            if self.reconstruct:
                assert hessian is not None
                weight = solver.reconstruct(weight, hessian, kept, DAMPING)
            else:
                weight = np.ascontiguousarray(weight[:, kept])
            if compensated:
                assert hessian is not None
                hessian = hessian[np.ix_(kept, kept)]
        if not compensated:
            return _nearest(weight, encoding)
        assert hessian is not None and isinstance(encoding, Quantized)
        solver.shrink(hessian, SHRINKAGE)
        parts, _ = solver.round_calibrated(weight, hessian, encoding, ORDER, DAMPING)
        return [part.reshape(-1) for part in parts]

    def to_json(self) -> Json:
        """For the plan."""
        return {
            "linear": self.linear,
            "profile_sha256": self.profile.sha256,
            "reconstruct": self.reconstruct,
            "compensate": self.compensate,
            "damping": DAMPING,
            "enough_tokens": solver.ENOUGH_TOKENS,
            "shrinkage": SHRINKAGE,
            "order": ORDER,
        }


def _nearest(weight: Values, encoding: Encoding) -> list[Bytes]:
    outs = [np.empty(part.size_bytes, np.uint8) for part in components("weight", weight.shape, encoding)]
    convert([as_bytes(weight)], Dense("F32"), weight.shape, None, encoding, outs)
    return outs
