"""Config edits that keep every place that states one fact in agreement."""

from __future__ import annotations

import math

from gemma_surgery.errors import SurgeryError
from gemma_surgery.families.gemma3 import Gemma3
from gemma_surgery.surgery.draft import Draft, JsonObject

PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"


def text_config(draft: Draft) -> JsonObject:
    """The text decoder's part of the draft's config, to be edited in place."""
    if not Gemma3(draft.config).is_multimodal:
        return draft.config
    return _section(draft, "text_config")


def vision_config(draft: Draft) -> JsonObject:
    """The vision tower's part of the draft's config, to be edited in place."""
    return _section(draft, "vision_config")


def set_image_size(draft: Draft, image_size: int, tokens_per_image: int) -> None:
    """State the resolution in all places: model config at both levels, preprocessor and processor."""
    vision_config(draft)["image_size"] = image_size
    draft.config["mm_tokens_per_image"] = tokens_per_image
    text_config(draft)["mm_tokens_per_image"] = tokens_per_image
    if draft.has_file(PREPROCESSOR):
        preprocessor = draft.document(PREPROCESSOR)
        preprocessor["size"] = {"height": image_size, "width": image_size}
        preprocessor["image_seq_length"] = tokens_per_image
    if draft.has_file(PROCESSOR):
        processor = draft.document(PROCESSOR)
        processor["image_seq_length"] = tokens_per_image
        nested = processor.get("image_processor")
        if isinstance(nested, dict):
            nested["size"] = {"height": image_size, "width": image_size}
            nested["image_seq_length"] = tokens_per_image


def set_layers(draft: Draft, kept: list[int], explicit_types: bool) -> None:
    """State which decoder layers remain, in every list that has an entry per layer."""
    family = Gemma3(draft.config)
    types = family.layer_types
    config = text_config(draft)
    if explicit_types or "layer_types" in config:
        config["layer_types"] = [types[layer] for layer in kept]
    if "per_layer_intermediate_sizes" in config:
        widths = family.mlp_widths
        config["per_layer_intermediate_sizes"] = [widths[layer] for layer in kept]
    config["num_hidden_layers"] = len(kept)


def set_mlp_widths(draft: Draft, widths: list[int]) -> None:
    """State the MLP width of every decoder layer."""
    config = text_config(draft)
    if len(set(widths)) == 1:
        config["intermediate_size"] = widths[0]
        config.pop("per_layer_intermediate_sizes", None)
    else:
        config["per_layer_intermediate_sizes"] = list(widths)


def set_compact_vocabulary(draft: Draft, logical_rows: int, compact_rows: int) -> None:
    """State that token ids keep their range and the table has fewer rows, at both levels."""
    draft.config["vocab_pruning"] = {"compact_vocab_size": compact_rows}
    draft.config["vocab_size"] = logical_rows
    text_config(draft)["vocab_size"] = logical_rows


def check_layers(family: Gemma3, kept: list[int]) -> None:
    """Raise unless engines that derive local/global attention from the index still get it right."""
    types = family.layer_types
    derived = family.types_by_pattern(len(kept))
    if len(kept) < family.pattern:
        raise SurgeryError(
            "drop_layers",
            f"need at least {family.pattern} decoder layers, one local/global period, got {len(kept)}",
            f"drop at most the last {family.num_layers - family.pattern}",
        )
    wrong = [layer for new, layer in enumerate(kept) if derived[new] != types[layer]]
    if not wrong:
        return
    dropped = sorted(set(range(family.num_layers)) - set(kept))
    first = dropped[0] - dropped[0] % family.pattern
    last = family.num_layers - len(dropped)
    period = min(first, family.num_layers - family.pattern)
    raise SurgeryError(
        "drop_layers",
        f"dropping layers {_span(dropped)} shifts the local/global pattern: layer {wrong[0]} is "
        f"{types[wrong[0]]} and engines would run it as {derived[kept.index(wrong[0])]}",
        f"drop the last {len(dropped)} ({_span(range(last, family.num_layers))}), a whole period "
        f"({period}-{period + family.pattern - 1}), or set `explicit_layer_types = true` for engines that "
        "read `layer_types`",
    )


def nearest_image_size(image_size: int, unit: int) -> int:
    """The valid image size (a multiple of `unit` pixels) nearest to `image_size`."""
    # Of two equally near, the smaller: the step is there to reduce.
    return max(unit, math.ceil(image_size / unit - 0.5) * unit)


def _span(layers: list[int] | range) -> str:
    numbers = list(layers)
    if len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ", ".join(map(str, numbers))


def _section(draft: Draft, key: str) -> JsonObject:
    section = draft.config[key]
    assert isinstance(section, dict)
    return section
