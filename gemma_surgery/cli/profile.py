"""`profile`: what the layers of a checkpoint do on calibration data, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemma_surgery.cli import options
from gemma_surgery.cli.console import CountProgress, out, print_json, print_table
from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import DOWN_PROJ, Gemma3

if TYPE_CHECKING:
    from gemma_surgery.calibration.calibrate import Calibrated
    from gemma_surgery.calibration.passages import Passage
    from gemma_surgery.calibration.profile import Profile
    from gemma_surgery.checkpoint.model_folder import Checkpoint

Output = Annotated[Path, typer.Option("--output", "-o", help="The profile to write (.safetensors).")]
Data = Annotated[
    Path | None,
    typer.Option("--calibration", help="Text, JSON lines, or a folder of images; default: built-in texts."),
]
Images = Annotated[Path | None, typer.Option("--images", help="A folder of images to show besides.")]
Samples = Annotated[int | None, typer.Option(min=1, help="Use the first so many; default: all.")]
MaxTokens = Annotated[
    int, typer.Option("--max-tokens", "-m", min=2, help="Tokens per sample at most; images are not cut.")
]
Hessians = Annotated[
    bool,
    typer.Option(
        "--hessians", help=f"Collect Hessians of `{DOWN_PROJ}`: 105 MB for a layer of width 10,240."
    ),
]
HessianOf = Annotated[
    list[str] | None,
    typer.Option("--hessian-of", help="The same for other layers, by pattern; repeatable."),
]
Threshold = Annotated[float, typer.Option(min=0.0, help="Activation below which a neuron counts as dead.")]
Picture = Annotated[Path | None, typer.Option("--heatmap", help="Draw the heatmap to a PNG file.")]
Raw = Annotated[bool, typer.Option("--raw", help="Feed texts as they are, also to a chat model.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last layer that was saved.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing profile.")]


def command(
    model: options.Model,
    output: Output,
    calibration: Data = None,
    images: Images = None,
    samples: Samples = None,
    max_tokens: MaxTokens = 256,
    hessians: Hessians = False,
    hessian_of: HessianOf = None,
    threshold: Threshold = 0.5,
    heatmap: Picture = None,
    raw: Raw = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
    revision: options.Revision = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure activations, fluctuations, Hessians and the influence of layers, one layer in memory at a time.

    Started by `mlx.launch` on several machines, each takes its share of the samples.
    """
    from gemma_surgery.calibration.calibrate import calibrate
    from gemma_surgery.calibration.passages import calibration_passages, read_passages
    from gemma_surgery.calibration.profile import read_profile
    from gemma_surgery.calibration.ranks import launched_ranks
    from gemma_surgery.checkpoint.model_folder import open_checkpoint

    if output.exists() and not overwrite:
        raise SurgeryError(
            "profile", f"need a new file, got `{output}` which exists", "choose another, or add `--overwrite`"
        )
    if heatmap is not None:
        _check_picture(heatmap)
    ranks = launched_ranks()
    passages: list[Passage] = list(
        calibration_passages() if calibration is None else read_passages(calibration)
    )
    if samples is not None:
        passages = passages[:samples]
    passages += [] if images is None else read_passages(images)
    checkpoint = open_checkpoint(model, revision)
    done = calibrate(
        checkpoint,
        passages,
        output,
        hessians=(*((DOWN_PROJ,) if hessians else ()), *(hessian_of or ())),
        max_tokens=max_tokens,
        is_raw=raw,
        resume=resume,
        ranks=ranks,
        progress=CountProgress("profiling", quiet or json or ranks.rank > 0),
    )
    if ranks.rank > 0:
        return
    profile = read_profile(output, checkpoint.fingerprint)
    family = Gemma3(checkpoint.config)
    if heatmap is not None:
        _draw(profile, family, threshold, heatmap)
    if json:
        print_json(_summary(profile, family, threshold, done, ranks.size))
    else:
        _print(profile, checkpoint, threshold, done)


def _layers(profile: Profile, family: Gemma3) -> list[tuple[int, float, list[float]]]:
    """Index, block influence and activations of every decoder layer."""
    layers = []
    for index, width in enumerate(family.mlp_widths):
        prefix = family.layer_prefix(index)
        activations = profile.activation(f"{prefix}mlp.", width)
        layers.append((index, profile.block_influence(prefix), activations.tolist()))
    return layers


def _summary(
    profile: Profile, family: Gemma3, threshold: float, done: Calibrated, num_ranks: int
) -> dict[str, object]:
    return {
        "profile": str(profile.path),
        "sha256": profile.sha256,
        "samples": done.samples,
        "tokens": profile.num_tokens,
        "chat": done.is_chat,
        "ranks": num_ranks,
        "threshold": threshold,
        "layers": [
            {
                "layer": index,
                "block_influence": influence,
                "mean_abs_activation": sum(values) / len(values),
                "below_threshold": sum(value < threshold for value in values) / len(values),
            }
            for index, influence, values in _layers(profile, family)
        ],
        "seconds": done.times.seconds,
        "resumed_layers": done.times.resumed_layers,
    }


def _print(profile: Profile, checkpoint: Checkpoint, threshold: float, done: Calibrated) -> None:
    import numpy as np

    from gemma_surgery.calibration.heatmap import text_rows

    layers = _layers(profile, Gemma3(checkpoint.config))
    strips = text_rows([np.asarray(values) for _, _, values in layers])
    rows = [
        [
            str(index),
            f"{influence:.4f}",
            f"{sum(values) / len(values):.3f}",
            f"{sum(value < threshold for value in values) / len(values):.0%}",
            strip,
        ]
        for (index, influence, values), strip in zip(layers, strips, strict=True)
    ]
    columns = [
        ("layer", "right"),
        ("influence", "right"),
        ("activation", "right"),
        (f"below {threshold:g}", "right"),
        ("neurons, most active first", "left"),
    ]
    print_table("", columns, rows)
    form = "chat turns" if done.is_chat else "raw text"
    out().print(f"measured on {done.samples:,} samples, {profile.num_tokens:,} tokens, as {form}")
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in done.times.seconds.items())
    layers_there = done.times.resumed_layers
    resumed = f"; {layers_there} layers were there already" if layers_there else ""
    out().print(f"{spent}{resumed}")
    out().print(f"written: {profile.path}")


def _check_picture(path: Path) -> None:
    """Refuse before the hours are spent what could not be written after them."""
    if path.suffix.lower() != ".png":
        raise SurgeryError("profile", f"need a name that ends in `.png` for the heatmap, got `{path}`")
    if not path.parent.is_dir():
        raise SurgeryError("profile", f"need a folder `{path.parent}` for the heatmap, got none")


def _draw(profile: Profile, family: Gemma3, threshold: float, path: Path) -> None:
    import numpy as np

    from gemma_surgery.calibration.heatmap import picture

    image = picture([np.asarray(values) for _, _, values in _layers(profile, family)], threshold)
    try:
        image.save(path)
    except (OSError, ValueError) as error:
        raise SurgeryError("profile", f"cannot write `{path}`: {error}") from None
