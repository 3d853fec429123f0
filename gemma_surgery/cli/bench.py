"""`bench`: how fast a model runs here, against the limit of memory and against another model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.cli import generation_options as options
from gemma_surgery.cli import options as common
from gemma_surgery.cli.answers import note
from gemma_surgery.cli.console import print_json

if TYPE_CHECKING:
    from gemma_surgery.measurement.bandwidth import Bandwidth
    from gemma_surgery.measurement.speed import Row, Spread, Subject, Trial
    from gemma_surgery.measurement.workload import Workload

PromptTokens = Annotated[
    list[int] | None,
    typer.Option(
        "--prompt-tokens", "-p", min=1, help="Text tokens of the prompt; default 512. May be repeated."
    ),
]
GenerationTokens = Annotated[
    int, typer.Option("--generation-tokens", "-g", min=2, help="Tokens to generate; ends are ignored.")
]
NumImages = Annotated[
    list[int] | None,
    typer.Option("--images", min=0, help="Images of noise before the text; default 0. May be repeated."),
]
ImageFiles = Annotated[
    list[str] | None, typer.Option("--image", help="Image file: one more row, with all of these in it.")
]
Against = Annotated[
    str | None, typer.Option("--against", help="Another checkpoint, measured in turn: MODEL relative to it.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of the random prompt.")]
JsonRows = Annotated[bool, typer.Option("--json", help="Print one JSON object per row instead of the table.")]


HEADINGS = (
    *("model", "images", "prompt", "prompt tok/s", "vision s"),
    *("tok/s", "MB/token", "GB/s", "of limit", "peak GB"),
)


def command(
    model: options.Model = None,
    model_option: options.ModelOption = None,
    prompt_tokens: PromptTokens = None,
    generation_tokens: GenerationTokens = 128,
    images: NumImages = None,
    image: ImageFiles = None,
    num_trials: options.Trials = 5,
    against: Against = None,
    prefill_step_size: options.PrefillStepSize = 512,
    dtype: options.Dtype = None,
    activations: options.Activations = "full",
    revision: common.Revision = None,
    seed: Seed = 0,
    quiet: common.Quiet = False,
    json: JsonRows = False,
) -> None:
    """Measure prompt and generation speed, memory, and the share of the memory bandwidth that is used."""
    name = options.one_model(model, model_option, "bench")
    options.check_precision(dtype, activations)

    from importlib.metadata import version

    import mlx.core as mx

    from gemma_surgery.measurement.bandwidth import measure_bandwidth
    from gemma_surgery.measurement.speed import Subject, measure_speed

    chosen = None if dtype is None else getattr(mx, dtype)
    subjects = [Subject.load(name, chosen, activations, revision)]
    if against is not None:
        subjects.append(Subject.load(against, chosen, activations))
    _name(subjects)
    workloads = _workloads(prompt_tokens or [512], generation_tokens, images or [], image or [])
    _check(subjects, workloads, seed)
    # Before and after, because nothing that disturbs a probe makes it faster.
    before = measure_bandwidth()
    rows = [
        measure_speed(
            subjects,
            workload,
            num_trials,
            prefill_step_size=prefill_step_size,
            seed=seed,
            on_trial=None if quiet else _report_trial,
        )
        for workload in workloads
    ]
    limit = max(before, measure_bandwidth(), key=lambda probe: probe.bytes_per_second)
    if not limit.is_of_memory:
        note("note: too little memory is free to get past the caches: the bandwidth is theirs")
    if json:
        for group in rows:
            for row in group:
                print_json(_document(row, group, limit))
        return
    _print_table([_cells(row, limit) for group in rows for row in group])
    for group in rows:
        if len(group) == 2:
            print(_ratio_line(*group))
    device = "GPU" if mx.default_device().type == mx.DeviceType.gpu else "CPU"
    kept = " and ".join(dict.fromkeys(str(subject.model.dtype) for subject in subjects))
    rounding = "" if activations == "full" else f", activations rounded to {activations}"
    print(
        f"MLX {version('mlx')} on the {device}, {kept.replace('mlx.core.', '')}{rounding}; {limit.describe()}"
    )


def _name(subjects: list[Subject]) -> None:
    """Call the models by their folders, unless that would call both the same."""
    names = [subject.model.checkpoint.path.name for subject in subjects]
    if len(set(names)) == len(names):
        for subject, name in zip(subjects, names, strict=True):
            subject.name = name


def _workloads(
    prompt_tokens: list[int], generation_tokens: int, images: list[int], files: list[str]
) -> list[Workload]:
    """Every number of images with every number of tokens; text alone first, while no vision is loaded."""
    from gemma_surgery.measurement.workload import Workload

    counts = sorted(set(images)) or [0]
    pictures = [(count, ()) for count in counts] + ([(len(files), tuple(files))] if files else [])
    return [
        Workload(tokens, generation_tokens, count, chosen)
        for count, chosen in pictures
        for tokens in prompt_tokens
    ]


def _check(subjects: list[Subject], workloads: list[Workload], seed: int) -> None:
    """Find what does not fit before anything is measured."""
    from gemma_surgery.measurement.workload import workload_prompt

    for workload in workloads:
        for subject in subjects:
            workload_prompt(subject.model, subject.tokenizer, workload, seed)


def _report_trial(name: str, number: int, trial: Trial) -> None:
    label = f"Trial {number}" if number else "Warm-up"
    note(
        f"{label}: {name} prompt_tps={trial.prompt_tps:.3f}, generation_tps={trial.generation_tps:.3f},"
        f" peak_memory={trial.peak_bytes / 1e9:.3f}, total_time={trial.seconds:.3f}"
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    """Columns that are never cut, numbers to the right; half the spread of the trials behind each speed."""
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows, strict=True)]
    for row in (HEADINGS, *rows):
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]).rstrip())


def _cells(row: Row, limit: Bandwidth) -> tuple[str, ...]:
    images = row.workload.num_images
    return (
        row.model,
        str(images),
        f"{row.prompt_tokens:,}",
        f"{_speed(row.prompt_tps.median)} ±{row.prompt_tps.relative / 2:.0%}",
        f"{row.vision_seconds.median:.3f}" if images else "-",
        f"{_speed(row.generation_tps.median)} ±{row.generation_tps.relative / 2:.0%}",
        _speed(row.bytes_per_token / 1e6),
        _speed(row.bytes_per_second / 1e9),
        f"{row.bytes_per_second / limit.bytes_per_second:.1%}",
        f"{row.peak_bytes / 1e9:.3f}",
    )


def _speed(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def _ratio_line(mine: Row, other: Row) -> str:
    ratios = mine.ratios(other)
    count = mine.workload.num_images
    images = f", {count} image{'s' if count > 1 else ''}" if count else ""
    parts = [
        f"prompt {ratios['prompt_tps']:.2f}x",
        f"generation {ratios['generation_tps']:.2f}x",
        f"bytes per token {ratios['bytes_per_token']:.3f}x",
        f"peak memory {ratios['peak_memory_bytes']:.3f}x",
    ]
    if "vision_seconds" in ratios:
        parts.insert(
            1, f"prompt time {ratios['prompt_seconds']:.3f}x, vision time {ratios['vision_seconds']:.3f}x"
        )
    return (
        f"{mine.model} / {other.model}, {mine.workload.text_tokens:,} text tokens{images}: {', '.join(parts)}"
    )


def _document(row: Row, group: list[Row], limit: Bandwidth) -> dict[str, object]:
    document: dict[str, object] = {
        "model": row.model,
        "images": row.workload.num_images,
        "prompt_tokens": row.prompt_tokens,
        "generation_tokens": row.workload.generation_tokens,
        "num_trials": len(row.trials),
        **_spread("prompt_tps", row.prompt_tps),
        **_spread("generation_tps", row.generation_tps),
        "vision_seconds": round(row.vision_seconds.median, 6),
        "peak_memory_bytes": row.peak_bytes,
        "weight_bytes_per_token": row.weight_bytes,
        "kv_bytes_per_token": round(row.kv_bytes),
        "bytes_per_token": row.weight_bytes + round(row.kv_bytes),
        "bytes_per_second": round(row.bytes_per_second),
        "bandwidth_bytes_per_second": round(limit.bytes_per_second),
        "bandwidth_fraction": round(row.bytes_per_second / limit.bytes_per_second, 6),
    }
    if len(group) == 2 and row is group[0]:
        document["against"] = group[1].model
        document["ratios"] = {key: round(value, 6) for key, value in row.ratios(group[1]).items()}
    return document


def _spread(key: str, spread: Spread) -> dict[str, float]:
    return {
        key: round(spread.median, 3),
        f"{key}_min": round(spread.least, 3),
        f"{key}_max": round(spread.most, 3),
    }
