"""`quantize`: store matrices as packed codes with scales and biases."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.steps.base import Step, open_profile
from gemma_surgery.steps.compensation import compensates, set_rounding
from gemma_surgery.surgery.draft import Draft
from gemma_surgery.surgery.encoding import FLOAT_DTYPES, MICROSCALING, Dense, Encoding, Quantized
from gemma_surgery.surgery.tensor import Tensor
from gemma_surgery.surgery.transform import Permute


@dataclass(frozen=True)
class Rule:
    """What tensors whose full name matches `match` (shell-style) get; the first rule that matches decides.

    Args:
        match: pattern such as ``*.down_proj.weight``.
        bits: bits per value, default: the step's.
        group_size: values per scale, default: the step's.
        mode: quantization mode, default: the step's.
        method: how values are rounded, default: the step's.
        keep: leave the tensor as it is.
    """

    match: str
    bits: int | None = None
    group_size: int | None = None
    mode: str | None = None
    method: Literal["auto", "round", "compensated"] | None = None
    keep: bool = False


@dataclass(frozen=True)
class Quantize(Step):
    """Quantize every linear and embedding weight whose width the group size divides.

    Already quantized tensors keep their codes unless `requantize` is set or a rule names them. A Hugging
    Face checkpoint also gets MLX's layout (its patch convolution is transposed, without loss).

    Args:
        bits: 2, 3, 4, 5, 6 or 8.
        group_size: 32, 64 or 128 values per scale; fixed by the microscaling modes.
        mode: `affine`, `symmetric` (affine with an exact zero), `mxfp4`, `nvfp4` or `mxfp8`.
        requantize: also change tensors that are quantized in another way, which loses twice.
        keep: patterns of full tensor names that stay as they are.
        rules: exceptions per tensor pattern, see `Rule`.
        method: `round` stores the nearest code; `compensated` goes column by column and spreads each
            error over the columns to come (GPTQ), for linears without padding whose Hessian a profile has and
            in modes `affine` and `symmetric`; `auto` is `compensated` where that is possible.
        profile: a profile of this checkpoint (`docs/format.md`), default: the recipe's.
    """

    bits: int = 4
    group_size: int = 64
    mode: str = "affine"
    requantize: bool = False
    keep: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    method: Literal["auto", "round", "compensated"] = "auto"
    profile: str | None = None

    def plan(self, draft: Draft) -> None:
        """Change the encoding of every matching tensor."""
        family = Gemma3(draft.config)
        profile = None if self.profile is None else open_profile(draft, self.profile)
        unused = {rule.match for rule in self.rules} | set(self.keep)
        kept_dense: dict[int, list[str]] = {}
        kept_codes = changed = compensated = 0
        for tensor in list(draft.tensors.values()):
            if not family.quantizes(tensor.name, tensor.shape):
                continue
            rule = self._rule(tensor.name)
            unused.discard(rule.match)
            if rule.keep:
                continue
            encoding = self._encoding(rule, tensor)
            may_change = self.requantize or bool(rule.match)
            if tensor.encoding == encoding or (isinstance(tensor.encoding, Quantized) and not may_change):
                kept_codes += 1
            elif tensor.shape[1] % encoding.group_size:
                kept_dense.setdefault(tensor.shape[1], []).append(tensor.name)
            else:
                draft.encode(tensor.name, encoding)
                changed += 1
                possible = profile is not None and compensates(tensor, encoding, profile)
                if rule.method == "compensated" and not possible:
                    raise _no_hessian(f"of `{tensor.name}`")
                compensate = possible and (rule.method or self.method) != "round"
                set_rounding(draft, tensor.name, profile, compensate)
                compensated += compensate
        if unused:
            raise SurgeryError(
                "quantize",
                f"need patterns that match a tensor, got {', '.join(f'`{p}`' for p in sorted(unused))}",
            )
        self._to_mlx_layout(draft, family)
        draft.note(f"{changed} matrices quantized, {kept_codes} quantized already")
        if self.method == "compensated" and changed and not compensated:
            raise _no_hessian("of a matrix to be quantized")
        if compensated:
            draft.note(f"errors of rounding compensated in {compensated} of them")
        for width, names in kept_dense.items():
            draft.note(
                f"{len(names)} kept dense: width {width} of `{names[0]}` is not divisible by the group size"
            )

    def _rule(self, name: str) -> Rule:
        for pattern in self.keep:
            if fnmatchcase(name, pattern):
                return Rule(pattern, keep=True)
        for rule in self.rules:
            if fnmatchcase(name, rule.match):
                return rule
        return Rule("")

    def _encoding(self, rule: Rule, tensor: Tensor) -> Quantized:
        mode = rule.mode or self.mode
        bits, group_size = MICROSCALING.get(mode, (self.bits, self.group_size))
        if mode == self.mode or mode not in MICROSCALING:
            bits, group_size = rule.bits or bits, rule.group_size or group_size
        return Quantized(bits, group_size, _scale_dtype(tensor.encoding, tensor.name), mode)

    def _to_mlx_layout(self, draft: Draft, family: Gemma3) -> None:
        convolution = draft.tensors.get(family.patch_embedding) if family.is_multimodal else None
        if convolution is not None and convolution.shape[-1] != family.vision("num_channels"):
            draft.transform(convolution.name, Permute((0, 2, 3, 1)))
            draft.note("patch convolution stored as [O, H, W, I], MLX's layout")
        draft.metadata["format"] = "mlx"


def _no_hessian(what: str) -> SurgeryError:
    return SurgeryError(
        "quantize",
        f"need a profile with the Hessian {what}, no microscaling mode and no padding for "
        '`method = "compensated"`',
        "make one with `gemma-surgery profile --hessians`, and give it with `--profile`",
    )


def _scale_dtype(encoding: Encoding, name: str) -> str:
    if isinstance(encoding, Quantized):
        return encoding.scale_dtype
    if isinstance(encoding, Dense) and encoding.dtype in FLOAT_DTYPES:
        return encoding.dtype
    raise SurgeryError("quantize", f"need floating-point values, got {encoding.describe()} in `{name}`")
