"""Tensor names that some writers spell in another way than the released files."""

from __future__ import annotations

from collections.abc import Collection

# transformers 5 saves Gemma 3's tower without the `vision_model.` of the released files.
TOWER, RELEASED_TOWER = "vision_tower.", "vision_tower.vision_model."
SHORT_TOWER_MARK = f"{TOWER}embeddings.patch_embedding.weight"


def released_names(names: Collection[str]) -> dict[str, str]:
    """Name as released by name in the file, for all tensors of a checkpoint."""
    if SHORT_TOWER_MARK not in names:
        return {name: name for name in names}
    return {
        name: RELEASED_TOWER + name.removeprefix(TOWER) if name.startswith(TOWER) else name for name in names
    }
