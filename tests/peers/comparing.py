"""What both sides are shown, and how far apart their answers are."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version

import mlx.core as mx
import numpy as np
import torch
from reference_models import Checkpointed

from gemma_surgery.models import Gemma3Model

# Largest difference of any logit, as a share of the largest logit.
TOLERANCE = 1e-4
# A departure from the reference is one only if it is far from what rounding explains.
DEPARTURE = 20 * TOLERANCE

# A prompt is described by runs of text tokens (a count), images with their frame, and bare image tokens.
Layout = tuple[int | str, ...]
IMAGE, BARE = "image", "bare image tokens"


def prompt_tokens(source: Checkpointed, layout: Layout, seed: int = 0, batch: int = 1) -> np.ndarray:
    """Token ids `[B, T]` of a layout; text tokens are random and never an image's."""
    rng = np.random.default_rng(seed)
    config = source.config
    highest = min(config.get("boi_token_index", source.text["vocab_size"]), source.text["vocab_size"])
    rows = []
    for _ in range(batch):
        row: list[int] = []
        for part in layout:
            if isinstance(part, int):
                row += rng.integers(3, highest, part).tolist()
                continue
            tokens = [config["image_token_index"]] * source.tokens_per_image
            framed = [config["boi_token_index"], *tokens, config["eoi_token_index"]]
            row += framed if part == IMAGE else tokens
        rows.append(row)
    return np.array(rows, np.int32)


def random_pixels(source: Checkpointed, layout: Layout, seed: int = 0) -> np.ndarray | None:
    """Normalised pixels `[N, S, S, 3]` for the images of a layout, each in colours of its own."""
    count = sum(isinstance(part, str) for part in layout)
    if not count:
        return None
    rng = np.random.default_rng(seed)
    size = source.image_size
    tint = rng.uniform(-1, 1, (count, 1, 1, 3))
    return np.clip(tint + rng.normal(0, 0.4, (count, size, size, 3)), -1, 1).astype(np.float32)


def reference_logits(
    reference: torch.nn.Module,
    tokens: np.ndarray,
    pixels: np.ndarray | None = None,
    image_token: int | None = None,
) -> np.ndarray:
    """Logits `[B, T, V]` of transformers in one pass; without `image_token`, images are causal like text."""
    ids = torch.from_numpy(tokens.astype(np.int64))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if pixels is not None:
        dtype = next(reference.parameters()).dtype
        inputs["pixel_values"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(dtype)
        if image_token is not None:
            inputs["token_type_ids"] = (ids == image_token).long()
    with torch.no_grad():
        return reference(**inputs, use_cache=False).logits.float().numpy()


@cache
def expected_logits(source: Checkpointed, layout: Layout, seed: int = 0, batch: int = 1) -> np.ndarray:
    """The reference's logits `[B, T, V]` for a layout, computed once."""
    tokens, pixels = prompt_tokens(source, layout, seed, batch), random_pixels(source, layout, seed)
    return reference_logits(source.reference, tokens, pixels, source.config.get("image_token_index"))


def our_logits(
    model: Gemma3Model, source: Checkpointed, layout: Layout, seed: int = 0, batch: int = 1
) -> np.ndarray:
    tokens, pixels = prompt_tokens(source, layout, seed, batch), random_pixels(source, layout, seed)
    return to_numpy(model(mx.array(tokens), None if pixels is None else mx.array(pixels)))


def to_numpy(array: mx.array) -> np.ndarray:
    return np.asarray(array.astype(mx.float32))


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected magnitude."""
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    assert np.isfinite(got).all() and np.isfinite(expected).all()
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def assert_equal(got: np.ndarray, expected: np.ndarray, what: str, tolerance: float = TOLERANCE) -> None:
    measured = difference(got, expected)
    print(f"{what}: {measured:.1e}")
    assert measured < tolerance, f"{what}: relative difference {measured:.1e}, allowed {tolerance:.0e}"


def assert_departs(got: np.ndarray, expected: np.ndarray, what: str, margin: float = DEPARTURE) -> None:
    """A wrong model must be seen to be wrong."""
    measured = difference(got, expected)
    print(f"{what}: {measured:.1e}")
    assert measured > margin, f"{what}: relative difference {measured:.1e} would pass unnoticed"


def assert_peer_departs(
    package: str, got: np.ndarray, expected: np.ndarray, what: str, margin: float = DEPARTURE
) -> None:
    """A peer's known departure from the reference; its end is good news, and this test's end."""
    measured = difference(got, expected)
    print(f"{package} {version(package)}, {what}: {measured:.1e}")
    assert measured > margin, (
        f"{package} {version(package)} changed: `{what}` made more than {margin:.0e} of a difference to "
        f"transformers, now {measured:.1e}; if it is right now, expect equality here and correct the docs"
    )
