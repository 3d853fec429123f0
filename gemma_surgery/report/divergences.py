"""Divergences from the original, of a recipe and of its steps, as `eval` and `compress` write them."""

from __future__ import annotations

from dataclasses import dataclass

from gemma_surgery.report.fields import Fields


@dataclass(frozen=True)
class Measured:
    """A value and its standard error, 0 where there is none."""

    value: float
    stderr: float = 0.0


@dataclass(frozen=True)
class Divergence:
    """Mean KL divergence and its distribution.

    Attributes:
        percentiles: by percent; empty where they are not known.
    """

    mean: Measured
    is_lower_bound: bool
    percentiles: dict[str, float]
    maximum: float | None


@dataclass(frozen=True)
class Protocol:
    """How it was measured; empty texts where that is not known."""

    text: str = ""
    data_sha256: str = ""


@dataclass(frozen=True)
class StepCost:
    """What the recipe has cost up to and with a step.

    Attributes:
        divergence: None where the step changes no answer and was not measured.
        kept: whether it is part of the result, or was left out by the guard.
    """

    number: int
    name: str
    divergence: Divergence | None
    same_top: Measured | None
    size_bytes: int | None
    kept: bool


@dataclass(frozen=True)
class StepCosts:
    """All steps of a recipe.

    Attributes:
        label: the checkpoint's folder, or the file's name where it does not say.
        plan_sha256: of the plan that the guard let pass; empty for an evaluation.
    """

    label: str
    plan_sha256: str
    steps: tuple[StepCost, ...]
    protocol: Protocol


def step_costs(
    document: Fields, key: str, label: str, protocol: Protocol, plan_sha256: str = ""
) -> StepCosts | None:
    """The records under a key; None where nothing was measured.

    Raises:
        SurgeryError: they are malformed.
    """
    steps = tuple(
        StepCost(
            each.integer("number") or place,
            each.text("step") or "",
            divergence_of(each),
            measured(each, "same_top", "same_top_stderr"),
            each.integer("size_bytes"),
            each.flag("is_kept"),
        )
        for place, each in enumerate(document.parts(key), 1)
    )
    return StepCosts(label, plan_sha256, steps, protocol) if steps else None


def divergence_of(fields: Fields) -> Divergence | None:
    """The divergence of an evaluation or of a step; None where it was not measured."""
    mean = measured(fields, "mean_kld", "kld_stderr")
    if mean is None:
        return None
    kld = fields.part("kld")
    return Divergence(
        mean,
        fields.flag("kld_is_lower_bound"),
        numbers(kld.part("percentiles") if kld else None),
        kld.number("max") if kld else None,
    )


def measured(fields: Fields | None, key: str, error: str) -> Measured | None:
    """A value and its error under two keys."""
    value = fields.number(key) if fields else None
    return None if fields is None or value is None else Measured(value, fields.number(error) or 0.0)


def numbers(fields: Fields | None) -> dict[str, float]:
    """All numbers of an object, without what is null."""
    if fields is None:
        return {}
    found = {key: fields.number(key) for key in fields.values}
    return {key: value for key, value in found.items() if value is not None}


def protocol_of(fields: Fields | None) -> Protocol:
    """How it was measured, in one line."""
    if fields is None:
        return Protocol()
    name, chunking = fields.text("name"), fields.text("chunking")
    samples, passages = fields.integer("samples"), fields.integer("passages")
    parts = [f"{name}: {chunking}" if name and chunking else name or ""]
    if fields.text("bos"):
        parts.append(f"begins with {fields.text('bos')}")
    if fields.text("chat_format"):
        parts.append(f"chat format {fields.text('chat_format')}")
    if samples is not None and passages is not None:
        parts.append(f"{samples:,} samples of {passages:,} passages")
    return Protocol("; ".join(part for part in parts if part), fields.text("data_sha256") or "")
