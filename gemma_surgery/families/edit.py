"""Config edits that keep every place that states one fact in agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gemma_surgery.checkpoint.json_types import Json
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
    if "per_layer_down_proj_bias" in config:
        flags = family.down_proj_biases
        config["per_layer_down_proj_bias"] = [flags[layer] for layer in kept]
    config["num_hidden_layers"] = len(kept)


def set_mlp_widths(draft: Draft, widths: list[int]) -> None:
    """State the MLP width of every decoder layer."""
    config = text_config(draft)
    if len(set(widths)) == 1:
        config["intermediate_size"] = widths[0]
        config.pop("per_layer_intermediate_sizes", None)
    else:
        config["per_layer_intermediate_sizes"] = list(widths)


def set_down_proj_bias(draft: Draft, layer: int) -> None:
    """State that `down_proj` of a decoder layer has a bias, which only engines that know the key add."""
    flags: list[Json] = list(Gemma3(draft.config).down_proj_biases)
    flags[layer] = True
    text_config(draft)["per_layer_down_proj_bias"] = flags


def set_heads(draft: Draft, heads: int, kv_heads: int) -> None:
    """State the number of attention heads of every decoder layer."""
    config = text_config(draft)
    config["num_attention_heads"], config["num_key_value_heads"] = heads, kv_heads


def set_compact_vocabulary(draft: Draft, logical_rows: int, compact_rows: int) -> None:
    """State that token ids keep their range and the table has fewer rows, at both levels."""
    draft.config["vocab_pruning"] = {"compact_vocab_size": compact_rows}
    draft.config["vocab_size"] = logical_rows
    text_config(draft)["vocab_size"] = logical_rows


def cheapest_layers(family: Gemma3, count: int, cost: Sequence[float], any_layer: bool) -> list[int]:
    """The `count` layers to keep such that the cost of the others is least.

    Args:
        family: the model before the cut.
        count: decoder layers that remain.
        cost: of dropping each layer.
        any_layer: also choices that shift the local/global pattern; otherwise layer i of the result has
            the type that engines derive from i.

    Raises:
        SurgeryError: no choice of `count` layers keeps the pattern.
    """
    types, derived = family.layer_types, family.types_by_pattern(count)
    # kept[n]: the greatest cost that n kept layers, among those seen so far, save, and which they are.
    kept: list[tuple[float, list[int]] | None] = [(0.0, []), *[None] * count]
    for layer, kind in enumerate(types):
        for slot in range(min(count, layer + 1), 0, -1):
            before = kept[slot - 1]
            if before is None or not (any_layer or derived[slot - 1] == kind):
                continue
            current, saved = kept[slot], before[0] + cost[layer]
            if current is None or saved > current[0]:
                kept[slot] = saved, [*before[1], layer]
    best = kept[count]
    if best is None:
        raise SurgeryError(
            "drop_layers",
            f"need {count} of {len(types)} decoder layers whose types follow the pattern, got none",
            "set `explicit_layer_types = true` for engines that read `layer_types`",
        )
    return best[1]


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
