"""What `eval`, `search` and `bench` measured, read from their JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePath

from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError
from gemma_surgery.report.divergences import (
    Divergence,
    Measured,
    Protocol,
    StepCosts,
    divergence_of,
    measured,
    numbers,
    protocol_of,
    step_costs,
)
from gemma_surgery.report.fields import WHERE, Fields, read_documents


@dataclass(frozen=True)
class Score:
    """Right ones out of all, as a share."""

    share: float
    right: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Images:
    """What was measured on images: `facts` right in drawn scenes, or `agreement` of descriptions."""

    kind: str
    count: int
    share: float | None
    share_reference: float | None
    loops: int | None
    descriptions: tuple[str, ...]
    descriptions_reference: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """One JSON of `eval`; what was not measured is None.

    Attributes:
        label: the folder's name.
        wrong_contractions: contexts in which a wrong form is likelier; None: not measured.
        impossible_forms: such as `I's`, in the greedy continuations.
    """

    label: str
    divergence: Divergence | None
    same_top: Measured | None
    ppl: float | None
    ppl_reference: float | None
    ppl_ratio: Measured | None
    positions: int | None
    tasks: Score | None
    contractions: Score | None
    contractions_reference: Score | None
    wrong_contractions: tuple[str, ...]
    impossible_forms: tuple[str, ...] | None
    repetition_rate: float | None
    continuations: int | None
    longest_loop_tokens: int | None
    images: Images | None
    protocol: Protocol
    reference: str
    notes: tuple[str, ...]


def read_evaluation(path: Path) -> tuple[Evaluation | None, StepCosts | None]:
    """Read the JSON of `eval --json`, or of `compress --guard --json`, which measures steps alone.

    Returns:
        What was measured of the whole, and by step; None for what was not.

    Raises:
        SurgeryError: unreadable, malformed, or of another command.
    """
    document = read_documents(path)[-1]
    if "guard" in document.values:
        protocol = protocol_of(document.part("guard_protocol"))
        plan_sha256 = document.text("plan_sha256") or ""
        return None, step_costs(document, "guard", path.stem, protocol, plan_sha256)
    if "mean_kld" not in document.values and "ppl" not in document.values:
        raise SurgeryError(
            WHERE,
            "need the JSON of `gemma-surgery eval --json` or `compress --guard ... --json`, got another one "
            f"in {document.place}",
        )
    found = _evaluation(document, path)
    return found, step_costs(document, "steps", found.label, found.protocol)


def _evaluation(document: Fields, path: Path) -> Evaluation:
    perplexity = document.part("perplexity")
    ratio = perplexity.part("ratio") if perplexity else None
    repetition = document.part("repetition")
    contractions = document.part("contractions")
    forms = document.texts("impossible_forms")
    return Evaluation(
        label=_folder_name(document.text("model") or path.stem),
        divergence=divergence_of(document),
        same_top=measured(document, "same_top", "same_top_stderr"),
        ppl=document.number("ppl"),
        ppl_reference=document.number("ppl_reference"),
        ppl_ratio=measured(ratio, "value", "stderr"),
        positions=document.integer("positions"),
        tasks=_score(document.part("tasks")),
        contractions=_score(contractions),
        contractions_reference=_score(document.part("contractions_reference")),
        wrong_contractions=contractions.texts("wrong") if contractions else (),
        impossible_forms=None if document.values.get("impossible_forms") is None else forms,
        repetition_rate=document.number("repetition_rate"),
        continuations=repetition.integer("continuations") if repetition else None,
        longest_loop_tokens=repetition.integer("longest_loop_tokens") if repetition else None,
        images=_images(document),
        protocol=protocol_of(document.part("protocol")),
        reference=_folder_name(document.text("reference") or ""),
        notes=document.texts("notes"),
    )


@dataclass(frozen=True)
class SearchPoint:
    """A recipe that was measured; `best` is the one that the search chose."""

    size_bytes: float
    kld: float
    label: str
    pareto: bool
    stderr: float = 0.0
    best: bool = False


@dataclass(frozen=True)
class Sensitivity:
    """What one step costs alone: on one layer at one width, or with so many layers dropped."""

    step: str
    layer: int | None
    width: int | None
    kld: float
    size_bytes: float | None
    dropped: int = 0


@dataclass(frozen=True)
class Search:
    """What `search` measured; with `base_kld`, sensitivities are what comes on top of that."""

    points: tuple[SearchPoint, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    base_kld: float | None = None


def read_search(path: Path) -> Search:
    """Read the JSON of `search`.

    Raises:
        SurgeryError: unreadable or malformed, or without any point.
    """
    document = read_documents(path)[-1]
    points = tuple(
        SearchPoint(
            each.needed("bytes"),
            each.needed("kl"),
            each.text("label") or "",
            each.flag("pareto"),
            each.number("kl_stderr") or 0.0,
            each.flag("best"),
        )
        for each in document.parts("points")
    )
    sensitivity = tuple(
        Sensitivity(
            each.text("step") or "",
            each.integer("layer"),
            each.integer("width"),
            each.needed("kl"),
            each.number("bytes"),
            each.integer("dropped") or 0,
        )
        for each in document.parts("sensitivity")
    )
    if not points and not sensitivity:
        raise SurgeryError(WHERE, f"need `points` or `sensitivity` of a search, got none in {document.place}")
    return Search(points, sensitivity, document.number("base_kl"))


@dataclass(frozen=True)
class Speed:
    """One row of `bench`: rates in tokens per second, with the least and the most of the trials."""

    model: str
    images: int
    prompt_tokens: int
    prompt: tuple[float, float, float]
    generation: tuple[float, float, float]
    vision_seconds: float | None
    peak_bytes: float | None
    bytes_per_token: float | None
    bandwidth_fraction: float | None
    trials: int | None
    ratios: dict[str, float] = field(default_factory=dict)
    against: str = ""


def read_speeds(path: Path) -> tuple[Speed, ...]:
    """Read the rows of one `bench --json`.

    Raises:
        SurgeryError: unreadable or malformed, or of another command.
    """
    rows: list[Speed] = []
    for row in read_documents(path):
        if "generation_tps" not in row.values:
            raise SurgeryError(
                WHERE, f"need the JSON of `gemma-surgery bench --json`, got another one in {row.place}"
            )
        rows.append(
            Speed(
                model=_folder_name(row.text("model") or literal(path.name)),
                images=row.integer("images") or 0,
                prompt_tokens=row.integer("prompt_tokens") or 0,
                prompt=_rate(row, "prompt_tps"),
                generation=_rate(row, "generation_tps"),
                vision_seconds=row.number("vision_seconds"),
                peak_bytes=row.number("peak_memory_bytes"),
                bytes_per_token=row.number("bytes_per_token"),
                bandwidth_fraction=row.number("bandwidth_fraction"),
                trials=row.integer("num_trials"),
                ratios=numbers(row.part("ratios")),
                against=_folder_name(row.text("against") or ""),
            )
        )
    return tuple(rows)


def _score(fields: Fields | None) -> Score | None:
    value = fields.number("share") if fields else None
    if fields is None or value is None:
        return None
    total = fields.integer("total")
    return Score(value, fields.integer("right"), fields.integer("contexts") if total is None else total)


def _images(document: Fields) -> Images | None:
    fields = document.part("images")
    if fields is None:
        return None
    reference = document.part("images_reference")
    return Images(
        kind=fields.text("kind") or "",
        count=fields.integer("images") or 0,
        share=fields.number("share"),
        share_reference=reference.number("share") if reference else None,
        loops=fields.integer("loops"),
        descriptions=fields.texts("descriptions"),
        descriptions_reference=fields.texts("descriptions_reference"),
    )


def _rate(row: Fields, key: str) -> tuple[float, float, float]:
    value = row.needed(key)
    least, most = row.number(f"{key}_min"), row.number(f"{key}_max")
    return value, value if least is None else least, value if most is None else most


def _folder_name(text: str) -> str:
    return PurePath(text).name or text
