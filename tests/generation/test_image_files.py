"""Image files: what opens as the reference opens it, and one sentence for whatever does not."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation.image_file import open_image
from gemma_surgery.generation.images import ImageSettings, image_pixels

pytestmark = pytest.mark.filterwarnings("error")

LOSSLESS = ["PNG", "BMP", "TIFF", "PPM", "TGA", "GIF"]
SMALL = ImageSettings(size=28)


def picture(width: int = 23, height: int = 17) -> Image.Image:
    y, x, c = np.indices((height, width, 3))
    return Image.fromarray(((11 * x + 5 * y + 80 * c) % 256).astype(np.uint8))


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A tiny PNG file whose header promises a large picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body + png_chunk(b"IEND", b"")


def frames(form: str) -> bytes:
    first, second = picture(), picture().rotate(180)
    return encoded(first, form, save_all=True, append_images=[second])


@pytest.mark.parametrize("form", LOSSLESS)
def test_a_lossless_file_gives_the_pixels_of_its_image(tmp_path: Path, form: str) -> None:
    image = picture().convert("P") if form == "GIF" else picture()
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(encoded(image, form))
    expected = image_pixels(image, SMALL)
    np.testing.assert_array_equal(image_pixels(path, SMALL), expected)
    np.testing.assert_array_equal(image_pixels(str(path), SMALL), expected)
    np.testing.assert_array_equal(image_pixels(path.read_bytes(), SMALL), expected)


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_a_lossy_file_opens(form: str) -> None:
    feature = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}.get(form)
    if feature is not None and not features.check(feature):
        pytest.skip(f"this Pillow was built without {form}")
    smooth = Image.linear_gradient("L").convert("RGB")
    got = image_pixels(encoded(smooth, form), SMALL)
    assert np.abs(got - image_pixels(smooth, SMALL)).mean() < 0.05


# What each orientation asks for, by the EXIF standard.
UPRIGHT = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_file_is_turned_upright_by_its_exif_data(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = UPRIGHT[orientation]
    expected = picture() if turn is None else picture().transpose(turn)
    opened = open_image(encoded(picture(), form, exif=exif))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(expected))


def test_a_given_image_is_taken_as_it_is() -> None:
    image = picture()
    image.getexif()[0x0112] = 6
    assert open_image(image) is image


def refusal(source: object) -> str:
    with pytest.raises(SurgeryError) as caught:
        open_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(("[image] need ", "[image] cannot "))
    assert "\n" not in caught.value.message
    return message


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(form: str, share: float) -> None:
    image = Image.effect_noise((64, 64), 90).convert("P" if form == "GIF" else "RGB")
    data = encoded(image, form)
    assert "damaged" in refusal(data[: int(len(data) * share)])


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animated_or_many_paged_file_is_refused(form: str) -> None:
    assert "need a still image, got 2 frames in the given bytes" in refusal(frames(form))
    assert "got 2 frames in the given image" in refusal(Image.open(io.BytesIO(frames(form))))


def test_a_photo_with_further_views_in_it_is_a_still_image() -> None:
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture().rotate(180)])
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 2
    assert np.abs(image_pixels(data, SMALL) - image_pixels(picture(), SMALL)).mean() < 0.1


@pytest.mark.parametrize(
    ("size", "pixels"),
    [((20_000, 20_000), "400,000,000"), ((10_001, 10_000), "100,010,000"), ((100_001, 1_000), "100,001,000")],
)
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int], pixels: str) -> None:
    message = refusal(png_claiming(*size))
    assert f"need at most 100,000,000 pixels, got {pixels} in the given bytes" in message
    assert "hint: make the image smaller first" in message


def test_a_long_side_alone_is_no_reason_to_refuse() -> None:
    assert image_pixels(Image.new("RGB", (20_000, 3), (255, 0, 0)), SMALL).shape == (28, 28, 3)
    # The header is accepted, and what fails is the missing data.
    assert "damaged" in refusal(png_claiming(20_000, 5_000))


def test_an_image_without_pixels_is_refused() -> None:
    assert "need an image with pixels, got 0 x 5 in the given image" in refusal(Image.new("RGB", (0, 5)))
    assert "damaged" in refusal(png_claiming(0, 5))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_values_that_would_be_cut_off_are_refused(mode: str) -> None:
    kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    wide = Image.fromarray(np.array([[0, 40_000]], kind))
    assert wide.mode == mode
    assert "need grey values of 8 bits, got 0 to 40000 in the given image" in refusal(wide)
    narrow = Image.fromarray(np.array([[0, 200]], kind))
    same = image_pixels(Image.fromarray(np.array([[0, 200]], np.uint8)), SMALL)
    np.testing.assert_array_equal(image_pixels(narrow, SMALL), same)


def test_a_colour_mode_that_does_not_convert_is_refused() -> None:
    with pytest.raises(SurgeryError, match="need colours that convert to RGB, got mode `La`"):
        image_pixels(Image.new("LA", (4, 4)).convert("La"), SMALL)


def test_what_is_no_image_file_is_refused(tmp_path: Path) -> None:
    text, empty, pipe = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    text.write_text("not an image")
    empty.write_bytes(b"")
    os.mkfifo(pipe)
    assert f"need an image, got something else or a damaged file in `{text}`" in refusal(text)
    assert f"need an image, got an empty file in `{empty}`" in refusal(empty)
    assert f"need a regular file, got something else at `{pipe}`" in refusal(pipe)
    assert f"need an image file, got the folder `{tmp_path}`" in refusal(tmp_path)
    assert f"cannot read `{tmp_path / 'd.png'}`: no such file or directory" in refusal(tmp_path / "d.png")
    assert "need an image, got an empty file" in refusal(b"")


@pytest.mark.parametrize(
    "address", ["https://example.com/a.png", "file:///a.png", "data:image/png;base64,AA"]
)
def test_an_address_is_refused_with_what_to_do(address: str) -> None:
    message = refusal(address)
    assert f"got the address `{address}`" in message
    assert "hint: download the image first" in message


def test_a_name_with_a_zero_byte_is_refused() -> None:
    assert "which no file can be called" in refusal("a\0b")


def test_formats_that_are_programs_or_data_are_not_opened() -> None:
    # Pillow hands this one to an interpreter of its own.
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    assert "need an image, got something else" in refusal(postscript)


@pytest.fixture(scope="module")
def originals() -> list[bytes]:
    forms = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "ICO"]
    return [encoded(picture(), form) for form in forms] + [frames("GIF"), frames("PNG")]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_file_opens_or_is_one_sentence(originals: list[bytes], data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    try:
        pixels = image_pixels(bytes(content), SMALL)
    except SurgeryError as error:
        assert error.where == "image"
        assert "\n" not in error.message
    else:
        assert pixels.shape == (28, 28, 3)
        assert np.abs(pixels).max() <= 1
