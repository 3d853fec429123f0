"""The shapes that occur in Gemma 3 4B: as published, and after the recipes `lite` and `mobile`."""

from __future__ import annotations

HIDDEN = 2560
# Rows of the embedding, which is the head, too; `lite` and `mobile` cut the same vocabulary.
HEAD_ROWS = {"original": 262_208, "mobile": 144_257}
GROUP_SIZE = 64
BITS = 4

# [out, in] of the decoder's linears.
LINEARS = {
    "q": (2048, HIDDEN),
    "k": (1024, HIDDEN),
    "o": (HIDDEN, 2048),
    "gate": (10_240, HIDDEN),
    "down": (HIDDEN, 10_240),
    "gate, mobile": (7_680, HIDDEN),
    "down, mobile": (HIDDEN, 7_680),
}
HEADS, KV_HEADS, HEAD_DIM, WINDOW = 8, 4, 256, 1024

# SigLIP: patches of an image of 896 and of 672 pixels; 4304 is divisible by no group, 4352 is its padding.
PATCHES = {"896 px": 4096, "672 px": 2304}
VISION_HIDDEN, VISION_HEADS, VISION_HEAD_DIM = 1152, 16, 72
VISION_MLP, VISION_MLP_PADDED = 4304, 4352
VISION_LINEARS = {
    "SigLIP q": (VISION_HIDDEN, VISION_HIDDEN),
    "SigLIP fc1": (VISION_MLP_PADDED, VISION_HIDDEN),
    "SigLIP fc2": (VISION_HIDDEN, VISION_MLP_PADDED),
}


def packed_bytes(rows: int, cols: int, bits: int = BITS, group_size: int = GROUP_SIZE) -> int:
    """Bytes of an affine matrix with 16-bit scales and biases."""
    return rows * cols * bits // 8 + rows * cols // group_size * 4
