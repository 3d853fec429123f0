"""Pixels against the reference's Gemma 3 image processor (its Pillow implementation)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference_processor import image_processor, random_picture, reference_pixels

from gemma_surgery.generation.images import ImageSettings, image_blocks, image_pixels
from gemma_surgery.generation.pan_and_scan import PanAndScan

# One level of 255 in the normalised range of 2.
ONE_LEVEL = 2 / 255
MODES = [
    "RGB",
    "RGBA",
    "L",
    "LA",
    "P",
    "P with a transparent colour",
    "PA",
    "CMYK",
    "1",
    "YCbCr",
    "HSV",
    "LAB",
]
SIZES = [(1, 1), (1, 600), (600, 1), (2, 3), (77, 123), (168, 168), (336, 336), (1001, 333), (50, 997)]


def measured(got: np.ndarray, expected: np.ndarray, what: str) -> float:
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    largest = float(np.abs(got - expected).max())
    print(f"{what}: {largest:.1e}")
    return largest


@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_every_mode_equal_the_reference(mode):
    picture = random_picture(201, 143, mode)
    got = image_pixels(picture, ImageSettings(size=168))[None]
    expected = reference_pixels([picture], 168)
    assert expected.std() > 0.2
    assert measured(got, expected, mode) == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["RGB", "LA"])
def test_pixels_of_every_size_equal_the_reference(size, mode):
    picture = random_picture(*size, mode)
    got = image_pixels(picture, ImageSettings(size=168))[None]
    assert measured(got, reference_pixels([picture], 168), f"{size}") == 0


@pytest.mark.parametrize("target", [224, 672, 896])
def test_pixels_at_the_released_sizes_equal_the_reference(target):
    picture = random_picture(1283, 719)
    got = image_pixels(picture, ImageSettings(size=target))[None]
    assert measured(got, reference_pixels([picture], target), f"{target} px") == 0


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_pixels_with_other_settings_equal_the_reference(resample):
    picture = random_picture(300, 200)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    settings = ImageSettings(size=90, resample=resample, rescale=1 / 127, mean=mean, std=std)
    expected = reference_pixels(
        [picture], 90, resample=resample, rescale_factor=1 / 127, image_mean=mean, image_std=std
    )
    assert measured(image_pixels(picture, settings)[None], expected, f"filter {resample}") <= 1e-6


@pytest.mark.parametrize("form", ["png", "jpg", "webp", "gif", "bmp"])
def test_pixels_of_files_equal_the_reference(tmp_path: Path, form):
    path = tmp_path / f"picture.{form}"
    random_picture(201, 143).save(path)
    got = image_pixels(path, ImageSettings(size=168))[None]
    assert measured(got, reference_pixels([str(path)], 168), form) == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_of_turned_photographs_equal_the_reference(tmp_path: Path, orientation):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    random_picture(201, 143).save(path, exif=exif)
    got = image_pixels(path, ImageSettings(size=168))[None]
    assert measured(got, reference_pixels([str(path)], 168), f"orientation {orientation}") == 0


def test_a_transparent_file_is_laid_on_white_as_the_reference_does_with_an_opened_one(tmp_path: Path):
    path = tmp_path / "picture.png"
    picture = random_picture(201, 143, "RGBA")
    picture.save(path)
    got = image_pixels(path, ImageSettings(size=168))[None]
    assert measured(got, reference_pixels([picture], 168), "opened") == 0
    # Given the path, transformers drops the alpha channel instead and shows what lies under it.
    by_path = reference_pixels([str(path)], 168)
    assert np.abs(got - by_path).max() > 0.5, "transformers changed: paths and opened images now agree"


PANORAMAS = [
    (512, 512),
    (614, 512),
    (615, 512),
    (800, 300),
    (300, 800),
    (1000, 256),
    (1000, 255),
    (1003, 300),
    (257, 1999),
    (400, 333),
    (5000, 260),
]


@pytest.mark.parametrize("size", PANORAMAS)
@pytest.mark.parametrize("crops", [PanAndScan(), PanAndScan(64, 6, 1.5)], ids=["default", "smaller pieces"])
def test_pan_and_scan_crops_equal_the_reference_in_order(size, crops):
    pictures = [random_picture(*size), random_picture(size[1], size[0], seed=1)]
    settings = ImageSettings(size=56, pan_and_scan=crops)
    got = [image_blocks(picture, settings) for picture in pictures]
    processed = image_processor(56)(
        pictures,
        return_tensors="np",
        do_pan_and_scan=True,
        pan_and_scan_min_crop_size=crops.min_crop_size,
        pan_and_scan_max_num_crops=crops.max_num_crops,
        pan_and_scan_min_ratio_to_activate=crops.min_ratio,
    )
    assert [len(blocks) - 1 for blocks in got] == np.asarray(processed["num_crops"]).tolist()
    expected = np.asarray(processed["pixel_values"]).transpose(0, 2, 3, 1)
    assert measured(np.concatenate(got), expected, f"{size}") == 0


def test_pan_and_scan_cuts_some_of_these_and_not_others():
    counts = {len(PanAndScan().boxes(*size)) for size in PANORAMAS}
    assert counts >= {0, 2, 3, 4}


def test_another_filter_or_background_is_noticed():
    picture = random_picture(201, 143, "RGBA")
    expected = reference_pixels([picture], 168)
    bicubic = image_pixels(picture, ImageSettings(size=168, resample=Image.Resampling.BICUBIC))[None]
    assert np.abs(bicubic - expected).max() > ONE_LEVEL
    black = image_pixels(picture.convert("RGB"), ImageSettings(size=168))[None]
    assert np.abs(black - expected).max() > ONE_LEVEL
