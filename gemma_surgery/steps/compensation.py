"""What makes good for removed inputs and for rounding, by what a profile measured of a linear's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from gemma_surgery.calibration.profile import DIAGONAL, Profile
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.edit import set_down_proj_bias
from gemma_surgery.families.gemma3 import Gemma3, down_proj_bias
from gemma_surgery.steps.base import source_matrix
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import Dense, Quantized
from gemma_surgery.surgery.selection import TopRanked
from gemma_surgery.surgery.solve import Solve
from gemma_surgery.surgery.tensor import RemovedInputs, SourceMatrix, Tensor

Compensation: TypeAlias = Literal["none", "bias", "columns"]


def chosen(
    wanted: Literal["auto", "none", "bias", "columns"],
    profile: Profile | None,
    matrices: Sequence[SourceMatrix],
) -> Compensation:
    """The compensation that a profile allows for: `auto` is `columns` where all Hessians are there.

    Raises:
        SurgeryError: `columns` is wanted, and a Hessian is missing.
    """
    if wanted != "auto":
        if wanted == "columns" and profile is not None:
            for matrix in matrices:
                _check_hessian(profile, matrix)
        return wanted
    if profile is None or not matrices:
        return "none"
    if not all(profile.has_hessian(linear_of(matrix)) for matrix in matrices):
        return "none"
    return chosen("columns", profile, matrices)


def compensates(tensor: Tensor, encoding: Quantized, profile: Profile) -> bool:
    """Whether rounding to `encoding` can be compensated.

    It takes a Hessian and groups with offsets; columns of padding, which have to stay zero, rule it out.
    """
    origin = tensor.origin
    if not encoding.has_biases or not isinstance(origin, SourceMatrix) or _is_padded(tensor):
        return False
    return profile.has_hessian(linear_of(origin))


def set_rounding(draft: Draft, name: str, profile: Profile | None, compensate: bool) -> None:
    """Say how the encoding of a matrix is rounded, and keep the fit of its columns if it has one."""
    tensor = draft.tensor(name)
    if tensor.solve is not None:
        draft.solve(name, replace(tensor.solve, compensate=compensate))
    elif compensate and profile is not None:
        matrix = source_matrix(draft, "quantize", name)
        draft.solve(name, Solve(profile, linear_of(matrix), reconstruct=False, compensate=True))


def reconstruct(draft: Draft, name: str, profile: Profile) -> None:
    """Fit the remaining columns of `name` to the whole product, and compensate their rounding."""
    matrix = source_matrix(draft, "prune_neurons", name)
    encoding = draft.tensor(name).encoding
    # The solver knows no microscaling formats: their matrices are fitted and rounded to the nearest.
    compensate = isinstance(encoding, Quantized) and encoding.has_biases
    draft.solve(name, Solve(profile, linear_of(matrix), reconstruct=True, compensate=compensate))


def add_bias(draft: Draft, family: Gemma3, layer: int, profile: Profile) -> None:
    """Give down_proj of a layer the mean of what its removed columns added as a bias.

    Raises:
        SurgeryError: the source has such a bias already, or the profile lacks the means.
    """
    down = family.mlp(layer)[2]
    matrix, tensor = source_matrix(draft, "prune_neurons", down), draft.tensor(down)
    name = down_proj_bias(down)
    if name in draft.tensors:
        if isinstance(draft.tensor(name).origin, SourceMatrix):
            raise SurgeryError(
                "prune_neurons",
                f"need a down_proj without a bias to give it one, got `{name}`",
                "prune the original checkpoint further, or use another `compensation`",
            )
        draft.drop(name)
    mean = profile.input_mean(linear_of(matrix), matrix.columns)
    dtype = tensor.encoding.dtype if isinstance(tensor.encoding, Dense) else tensor.encoding.scale_dtype
    draft.add(Tensor.of_values(name, RemovedInputs(matrix, mean, tensor.columns), Dense(dtype)))
    set_down_proj_bias(draft, layer)


def _check_hessian(profile: Profile, matrix: SourceMatrix) -> None:
    info = profile.header.tensors.get(f"{linear_of(matrix)}.{DIAGONAL}")
    if info is None or info.shape != (matrix.columns,):
        got = "none" if info is None else f"one of {list(info.shape)}"
        raise SurgeryError(
            "profile",
            f"need a Hessian of {matrix.columns} inputs of `{linear_of(matrix)}`, got {got} "
            f"in `{profile.path.name}`",
            "profile with `--hessians`",
        )


def _is_padded(tensor: Tensor) -> bool:
    chosen_ones = [part for part in tensor.columns.parts if not isinstance(part, TopRanked)]
    return any(bool((part < 0).any()) for part in chosen_ones)


def linear_of(matrix: SourceMatrix) -> str:
    """The module path of a weight, by which profiles go."""
    return matrix.name.removesuffix(".weight")
