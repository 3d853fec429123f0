"""Opening an image: a file, its bytes or a Pillow image, with one clear sentence where it cannot be."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, TypeAlias

from PIL import Image, ImageOps, UnidentifiedImageError

from gemma_surgery.checkpoint.json_types import read_small_file
from gemma_surgery.checkpoint.wording import literal
from gemma_surgery.errors import SurgeryError

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image"

# 300 MB as RGB; the model sees less than one pixel in a hundred of it.
MAX_PIXELS = 100_000_000
MAX_FILE_BYTES = 512 * 1024 * 1024
# Formats of pictures. Pillow opens many more, some by starting another program.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG"),
    *("PPM", "QOI", "TGA", "TIFF", "WEBP"),
)
# Further pictures in these are previews or other views of the first, not frames.
STILL_FORMATS = ("MPO", "ICO")
_WIDE_MODES = ("I", "F")


def open_image(source: ImageSource) -> Image.Image:
    """Open and decode an image and turn it upright as its EXIF data say.

    Args:
        source: a path, the bytes of a file, or a Pillow image, which is taken as it is.

    Returns:
        A decoded image in any mode.

    Raises:
        SurgeryError: not a readable image of a known format, truncated, animated, without pixels, of more
            than `MAX_PIXELS` pixels, or with grey values that 8 bits cannot hold.
    """
    if isinstance(source, Image.Image):
        return _decoded(source, "the given image")
    if isinstance(source, bytes):
        data, name = source, "the given bytes"
    else:
        path = _local_path(source)
        data, name = read_small_file(path, MAX_FILE_BYTES, "image"), literal(str(path))
    if not data:
        _refuse(f"need an image, got an empty file in {name}")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with _quiet():
            image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:
        _refuse(
            f"need an image, got something else or a damaged file in {name}",
            "save it as PNG, JPEG or WebP",
        )
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        _refuse_pixels(int(found[0]) if found else None, name)
    except Exception as error:
        # Decoders fail on damaged files in their own ways.
        _refuse_damaged(error, name)
    return _upright(_decoded(image, name), name)


def _local_path(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://|data:", text):
        _refuse(f"need an image file, got the address {literal(text)}", "download the image first")
    if "\0" in text:
        _refuse(f"need an image file, got {literal(text)}, which no file can be called")
    path = Path(text).expanduser()
    if path.is_dir():
        _refuse(f"need an image file, got the folder {literal(str(path))}")
    return path


def _decoded(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if not width or not height:
        _refuse(f"need an image with pixels, got {width} x {height} in {name}")
    if width * height > MAX_PIXELS:
        _refuse_pixels(width * height, name)
    try:
        with _quiet():
            frames = 1 if image.format in STILL_FORMATS else getattr(image, "n_frames", 1)
            if frames == 1:
                image.load()
    except Exception as error:
        _refuse_damaged(error, name)
    if frames > 1:
        _refuse(
            f"need a still image, got {frames:,} frames in {name}",
            "save the frame that you mean as an image of its own",
        )
    if image.mode.startswith(_WIDE_MODES):
        low, high = _extrema(image)
        if low < 0 or high > 255:
            _refuse(
                f"need grey values of 8 bits, got {low:g} to {high:g} in {name}",
                "convert it to 8 bits first: cut off at 255 it would be white",
            )
    return image


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        with _quiet():
            ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:
        _refuse_damaged(error, name)
    return image


def _extrema(image: Image.Image) -> tuple[float, float]:
    low, high = image.convert("F").getextrema()
    return float(low), float(high)  # type: ignore[arg-type]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings from the screen: what matters is an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _refuse_pixels(pixels: int | None, name: str) -> NoReturn:
    got = f"{pixels:,}" if pixels is not None else "more"
    _refuse(f"need at most {MAX_PIXELS:,} pixels, got {got} in {name}", "make the image smaller first")


def _refuse_damaged(error: Exception, name: str) -> NoReturn:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    _refuse(f"need a whole image, got a damaged one in {name}: {reason}", "save it again or take another one")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise SurgeryError("image", message, hint) from None
