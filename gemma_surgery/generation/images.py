"""From a picture to the numbers that the vision tower takes."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from PIL import Image

from gemma_surgery.checkpoint.json_types import Json, load_json_object
from gemma_surgery.checkpoint.wording import brief
from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.image_file import ImageSource, open_image
from gemma_surgery.generation.pan_and_scan import PanAndScan

SETTINGS_NAME = "preprocessor_config.json"
CHANNELS = 3
LEVELS = 256

Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImageSettings:
    """How pictures are prepared; the defaults are Gemma 3's.

    Attributes:
        size: pixels of a side of the square that every picture is resized to.
        resample: Pillow's number of the resize filter; 2 is bilinear.
        rescale: factor on the levels 0 to 255.
        mean: per channel, subtracted after rescaling.
        std: per channel, divided by after that.
        resize: False if pictures must come in the right size.
        pan_and_scan: how pictures far from square are cut; None: never.
    """

    size: int = 896
    resample: int = Image.Resampling.BILINEAR
    rescale: float = 1 / 255
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resize: bool = True
    pan_and_scan: PanAndScan | None = None

    @staticmethod
    def load(folder: Path, image_size: int, pan_and_scan: bool | None = None) -> ImageSettings:
        """Read `preprocessor_config.json` of a folder; what it leaves out or null has Gemma 3's value.

        Args:
            folder: the checkpoint's folder; without the file, all values are Gemma 3's.
            image_size: pixels of a side that the vision tower takes.
            pan_and_scan: whether to cut pictures far from square; None: as the file says.

        Raises:
            SurgeryError: the file is broken, a value has the wrong type, or the size is not `image_size`.
        """
        path = folder / SETTINGS_NAME
        reader = _Reader(load_json_object(path, "image") if path.exists() else {})
        size = reader.size(image_size)
        if size != (image_size, image_size):
            _refuse(
                f"need images of {image_size} x {image_size} as `config.json` says, "
                f"got a size of {size[0]} x {size[1]} in `{SETTINGS_NAME}`"
            )
        defaults = PanAndScan()
        cut = reader.flag("do_pan_and_scan", False) if pan_and_scan is None else pan_and_scan
        crops = PanAndScan(
            reader.count("pan_and_scan_min_crop_size", defaults.min_crop_size),
            reader.count("pan_and_scan_max_num_crops", defaults.max_num_crops),
            reader.number("pan_and_scan_min_ratio_to_activate", defaults.min_ratio),
        )
        normalize = reader.flag("do_normalize", True)
        return ImageSettings(
            size=image_size,
            resample=reader.resample(),
            rescale=reader.number("rescale_factor", 1 / 255) if reader.flag("do_rescale", True) else 1.0,
            mean=reader.channels("image_mean", 0.5) if normalize else (0.0,) * CHANNELS,
            std=reader.channels("image_std", 0.5) if normalize else (1.0,) * CHANNELS,
            resize=reader.flag("do_resize", True),
            pan_and_scan=crops if cut else None,
        )


def image_pixels(image: ImageSource, settings: ImageSettings) -> Pixels:
    """Prepare one picture as a whole.

    Equal to transformers' Gemma 3 processor (its Pillow implementation) bit for bit.

    Args:
        image: a path, the bytes of a file, or a Pillow image of any mode and size. What is transparent is
            laid on white.
        settings: how.

    Returns:
        float32 `[S, S, 3]`, channels last.

    Raises:
        SurgeryError: the image cannot be opened (see `open_image`), or has another size that is not to be
            changed.
    """
    return _normalized(_resized(_rgb(open_image(image)), settings), settings)


def image_blocks(image: ImageSource, settings: ImageSettings) -> Pixels:
    """Prepare one picture: the whole, then its pieces where pan-and-scan is on and finds it far from square.

    Args:
        image: as for `image_pixels`.
        settings: how.

    Returns:
        float32 `[N, S, S, 3]`, one entry per block of image tokens; the first is the whole picture.

    Raises:
        SurgeryError: as `image_pixels`.
    """
    picture = _rgb(open_image(image))
    boxes = settings.pan_and_scan.boxes(*picture.size) if settings.pan_and_scan else []
    parts = [picture, *(picture.crop(box) for box in boxes)]
    return np.stack([_normalized(_resized(part, settings), settings) for part in parts])


def _rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB, with what is transparent laid on white."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.mode == "RGB" and image.info.get("transparency") is None:
                return image
            if "A" not in image.getbands() and image.info.get("transparency") is None:
                return image.convert("RGB")
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, image).convert("RGB")
    except (ValueError, OSError) as error:
        _refuse(f"need colours that convert to RGB, got mode `{image.mode}`: {error}")


def _resized(image: Image.Image, settings: ImageSettings) -> npt.NDArray[np.uint8]:
    size = (settings.size, settings.size)
    if not settings.resize and image.size != size:
        _refuse(
            f"need an image of {size[0]} x {size[1]}, got {image.width} x {image.height}",
            f"resize it, or set `do_resize` in `{SETTINGS_NAME}`",
        )
    return np.asarray(image.resize(size, settings.resample) if settings.resize else image)


def _normalized(levels: npt.NDArray[np.uint8], settings: ImageSettings) -> Pixels:
    """Look every level up: 256 values per channel, rounded as the reference rounds them."""
    rescaled = (np.arange(LEVELS, dtype=np.float64) * settings.rescale).astype(np.float32)
    mean, std = np.array(settings.mean, np.float32), np.array(settings.std, np.float32)
    table = (rescaled[:, None] - mean) / std
    pixels: Pixels = table[levels, np.arange(CHANNELS)]
    return pixels


class _Reader:
    """Typed access to a preprocessor_config.json; null counts as left out."""

    def __init__(self, document: dict[str, Json]) -> None:
        self._document = document

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._wrong(key, "true or false", value)
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            self._wrong(key, "a positive number", value)
        return float(value)

    def count(self, key: str, default: int) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._wrong(key, "a positive integer", value)
        return value

    def resample(self) -> int:
        value = self._get("resample", int(Image.Resampling.BILINEAR))
        if isinstance(value, bool) or not isinstance(value, int) or value not in list(Image.Resampling):
            self._wrong("resample", "the number of a Pillow filter, 0 to 5", value)
        return value

    def channels(self, key: str, default: float) -> tuple[float, ...]:
        value = self._get(key, default)
        values = value if isinstance(value, list) else [value] * CHANNELS
        numbers = tuple(
            float(entry)
            for entry in values
            if isinstance(entry, (int, float)) and not isinstance(entry, bool) and math.isfinite(entry)
        )
        if len(numbers) != len(values) or len(values) != CHANNELS:
            self._wrong(key, f"{CHANNELS} numbers", value)
        if key == "image_std" and not all(numbers):
            self._wrong(key, "numbers other than 0", value)
        return numbers

    def size(self, default: int) -> tuple[int, int]:
        """Height and width."""
        value = self._get("size", default)
        sides = value if isinstance(value, dict) else {"height": value, "width": value}
        height, width = sides.get("height"), sides.get("width")
        if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
            self._wrong("size", "`height` and `width`", value)
        return height, width

    def _get(self, key: str, default: Json) -> Json:
        value = self._document.get(key)
        return default if value is None else value

    @staticmethod
    def _wrong(key: str, needed: str, value: Json) -> NoReturn:
        _refuse(f"need {needed} under `{key}`, got {brief(value)} in `{SETTINGS_NAME}`")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("image", message, hint) from None
