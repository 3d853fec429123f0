"""Pixels: equal to transformers' Gemma 3 processor, and to an independent computation in float64."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.images import ImageSettings, image_blocks, image_pixels
from gemma_surgery.generation.pan_and_scan import PanAndScan

SMALL = ImageSettings(size=56)

# Mode, size and the start of the SHA-256 of `[56, 56, 3]` float32, from `Gemma3ImageProcessorPil` of
# transformers 5.23 with mean and deviation 0.5.
RECORDED = [
    ("RGB", (57, 33), "891e33146cebce4d"),
    ("RGB", (3, 200), "95e57e3e1f6efa9d"),
    ("RGBA", (57, 33), "56d8da902ab7bb37"),
    ("RGBA", (3, 200), "3637f051340e49fa"),
    ("L", (57, 33), "be43fecf1d5c27ca"),
    ("L", (3, 200), "d6429ac24e6df5de"),
    ("LA", (57, 33), "11c468856317844a"),
    ("LA", (3, 200), "044deedbe99ecb3f"),
    ("P", (57, 33), "6ea3c8243c9a62da"),
    ("P", (3, 200), "2028bcd959ccf3a6"),
    ("CMYK", (57, 33), "891e33146cebce4d"),
    ("CMYK", (3, 200), "95e57e3e1f6efa9d"),
    ("YCbCr", (57, 33), "66dc07adb54b19b9"),
    ("YCbCr", (3, 200), "fee49f1e9a3b1eb3"),
    ("1", (57, 33), "36a7ff91b8d20c74"),
    ("1", (3, 200), "7a0e03e22a5f64d5"),
]


def pattern(width: int, height: int) -> Image.Image:
    y, x, c = np.indices((height, width, 4))
    return Image.fromarray(((x * x + 7 * y * x + 13 * y + 29 * c * (y + 1) + 3 * x) % 256).astype(np.uint8))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


def digest(pixels: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def bilinear(levels: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.float64]:
    """Triangle filter as wide as the shrinking asks for, one axis after the other, nothing rounded."""
    result = levels.astype(np.float64)
    for axis in (1, 0):
        length = result.shape[axis]
        scale = length / size
        support = max(scale, 1.0)
        centres = (np.arange(size)[:, None] + 0.5) * scale
        distance = np.abs(np.arange(length)[None, :] + 0.5 - centres) / support
        weights = np.maximum(1 - distance, 0)
        weights /= weights.sum(axis=1, keepdims=True)
        result = np.moveaxis(np.tensordot(weights, result, axes=(1, axis)), 0, axis)
    return result


@pytest.mark.parametrize(("mode", "size", "sha256"), RECORDED)
def test_pixels_are_those_of_the_reference(mode: str, size: tuple[int, int], sha256: str) -> None:
    pixels = image_pixels(in_mode(pattern(*size), mode), SMALL)
    assert pixels.dtype == np.float32
    assert pixels.shape == (56, 56, 3)
    assert digest(pixels) == sha256


def test_pieces_are_those_of_the_reference() -> None:
    cut = ImageSettings(size=56, pan_and_scan=PanAndScan())
    blocks = image_blocks(pattern(900, 300).convert("RGB"), cut)
    assert blocks.shape == (4, 56, 56, 3)
    assert digest(blocks) == "3bc71369e0201243"


@settings(max_examples=30, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.sampled_from([14, 56, 97]))
def test_resizing_is_bilinear_within_one_level(width: int, height: int, size: int) -> None:
    image = pattern(width, height).convert("RGB")
    got = (image_pixels(image, ImageSettings(size=size)).astype(np.float64) + 1) * 127.5
    expected = bilinear(np.asarray(image), size)
    # Rounded to a level after each axis: at most twice half a level.
    assert np.abs(got - expected).max() <= 1.001
    assert np.abs(got - expected).mean() <= 0.5


def test_an_image_of_the_right_size_is_only_rescaled() -> None:
    image = pattern(56, 56).convert("RGB")
    exact = np.asarray(image).astype(np.float64) / 127.5 - 1
    np.testing.assert_allclose(image_pixels(image, SMALL), exact, rtol=0, atol=2e-7)


@settings(deadline=None)
@given(colour=st.tuples(*[st.integers(0, 255)] * 3))
def test_a_plain_colour_stays_that_colour_in_channel_order(colour: tuple[int, int, int]) -> None:
    pixels = image_pixels(Image.new("RGB", (31, 17), colour), SMALL)
    exact = np.array(colour) / 127.5 - 1
    np.testing.assert_allclose(pixels, np.broadcast_to(exact, (56, 56, 3)), rtol=0, atol=2e-7)


def test_rows_come_before_columns() -> None:
    image = Image.new("RGB", (100, 100), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 50, 100))
    pixels = image_pixels(image, SMALL)
    assert (pixels[:, :27] == -1).all()
    assert (pixels[:, 29:] == 1).all()


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (10, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 5, 10))
    pixels = image_pixels(image, ImageSettings(size=10))
    np.testing.assert_array_equal(pixels[0, 0], [1, -1, -1])
    np.testing.assert_array_equal(pixels[0, 9], [1, 1, 1])
    marked = Image.new("RGB", (4, 4), (7, 8, 9))
    marked.info["transparency"] = (7, 8, 9)
    assert (image_pixels(marked, ImageSettings(size=4)) == 1).all()
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0] * 768)
    palette.info["transparency"] = 3
    assert (image_pixels(palette, ImageSettings(size=4)) == 1).all()


def test_mean_deviation_and_factor_are_applied_per_channel() -> None:
    chosen = ImageSettings(size=4, rescale=1 / 100, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    pixels = image_pixels(Image.new("RGB", (4, 4), (10, 20, 30)), chosen)
    np.testing.assert_allclose(pixels[0, 0], [0, 0, 0], atol=1e-7)
    pixels = image_pixels(Image.new("RGB", (4, 4), (110, 220, 230)), chosen)
    np.testing.assert_allclose(pixels[0, 0], [1, 1, 0.5], atol=1e-6)


def test_the_given_image_is_not_changed() -> None:
    image = pattern(20, 10)
    before = image.tobytes()
    image_pixels(image, SMALL)
    assert (image.mode, image.size, image.tobytes()) == ("RGBA", (20, 10), before)


def written(folder: Path, document: dict[str, object]) -> Path:
    (folder / "preprocessor_config.json").write_text(json.dumps(document))
    return folder


def test_without_a_file_the_settings_are_gemmas(tmp_path: Path) -> None:
    assert ImageSettings.load(tmp_path, 896) == ImageSettings()
    assert ImageSettings.load(tmp_path, 672, pan_and_scan=True) == ImageSettings(
        672, pan_and_scan=PanAndScan()
    )


def test_null_counts_as_left_out(tmp_path: Path) -> None:
    keys = ("size", "resample", "image_mean", "image_std", "rescale_factor", "do_resize", "do_rescale")
    keys += ("do_normalize", "do_pan_and_scan", "pan_and_scan_min_crop_size", "do_convert_rgb")
    assert ImageSettings.load(written(tmp_path, dict.fromkeys(keys)), 896) == ImageSettings()


def test_every_setting_of_the_file_is_read(tmp_path: Path) -> None:
    document = {
        "size": {"height": 56, "width": 56},
        "resample": 3,
        "rescale_factor": 0.5,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 2, 3],
        "do_resize": False,
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 100,
        "pan_and_scan_max_num_crops": 3,
        "pan_and_scan_min_ratio_to_activate": 1.5,
    }
    expected = ImageSettings(56, 3, 0.5, (0.1, 0.2, 0.3), (1, 2, 3), False, PanAndScan(100, 3, 1.5))
    assert ImageSettings.load(written(tmp_path, document), 56) == expected
    assert ImageSettings.load(tmp_path, 56, pan_and_scan=False).pan_and_scan is None
    plain = ImageSettings.load(
        written(tmp_path, {"do_rescale": False, "do_normalize": False, "size": 56}), 56
    )
    assert (plain.rescale, plain.mean, plain.std) == (1.0, (0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"size": {"height": 672, "width": 672}}, "need images of 896 x 896 as `config.json` says"),
        ({"size": {"height": 896, "width": 448}}, "got a size of 896 x 448"),
        ({"size": {"shortest_edge": 896}}, "need `height` and `width` under `size`"),
        ({"size": "896"}, "need `height` and `width` under `size`, got `896`"),
        ({"resample": 9}, "need the number of a Pillow filter, 0 to 5 under `resample`, got 9"),
        ({"resample": {}}, "need the number of a Pillow filter"),
        ({"rescale_factor": 0}, "need a positive number under `rescale_factor`, got 0"),
        ({"rescale_factor": "1/255"}, "need a positive number under `rescale_factor`"),
        ({"image_mean": [0.5, 0.5]}, "need 3 numbers under `image_mean`"),
        ({"image_mean": [0.5, 0.5, True]}, "need 3 numbers under `image_mean`"),
        ({"image_std": [0.5, 0, 0.5]}, "need numbers other than 0 under `image_std`"),
        ({"do_resize": "yes"}, "need true or false under `do_resize`, got `yes`"),
        ({"pan_and_scan_max_num_crops": 0}, "need a positive integer under `pan_and_scan_max_num_crops`"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path: Path, document: dict[str, object], message: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        ImageSettings.load(written(tmp_path, document), 896)
    assert message in str(caught.value)
    assert "in `preprocessor_config.json`" in str(caught.value)


def test_an_image_that_may_not_be_resized_must_have_the_size() -> None:
    fixed = ImageSettings(size=56, resize=False)
    with pytest.raises(SurgeryError, match="need an image of 56 x 56, got 57 x 56"):
        image_pixels(Image.new("RGB", (57, 56)), fixed)
    assert image_pixels(Image.new("RGB", (56, 56)), fixed).shape == (56, 56, 3)
