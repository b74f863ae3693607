"""Decoding: the pixels are those of PIL, and it refuses what PIL refuses."""

import io

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from sklearn.datasets import load_sample_images

from focalnet_jax.data import BadRecordError
from focalnet_jax.data.images.decoding import decode


@pytest.fixture(scope="module")
def photograph():
    return PIL.Image.fromarray(load_sample_images().images[1][:301, :403])


def encode(image, file_format="JPEG", **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def rotated(image):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees
    return encode(image, exif=exif)


def animated(image, file_format):
    frames = [image.resize((40, 30)).rotate(90 * i) for i in range(3)]
    return encode(frames[0], file_format, save_all=True, append_images=frames[1:])


def sixteen_bits(image):
    levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encode(PIL.Image.fromarray(levels), "PNG")


IMAGES = {
    "4:2:0": lambda image: encode(image, quality=90),
    "4:2:2": lambda image: encode(image, quality=90, subsampling=1),
    "4:4:4": lambda image: encode(image, quality=95, subsampling=0),
    "progressive": lambda image: encode(image, progressive=True),
    "RGB": lambda image: encode(image, keep_rgb=True),
    "greyscale": lambda image: encode(image.convert("L")),
    "CMYK": lambda image: encode(image.convert("CMYK")),
    "EXIF rotation": rotated,
    "trailing bytes": lambda image: encode(image) + b"\0" * 100,
    "1 x 1": lambda image: encode(image.resize((1, 1))),
    "PNG": lambda image: encode(image, "PNG"),
    "palette with a transparent colour": lambda image: encode(
        image.convert("P"), "PNG", transparency=3
    ),
    "transparency": lambda image: encode(image.convert("RGBA"), "PNG"),
    "16 bits": sixteen_bits,
    "1 bit": lambda image: encode(image.convert("1"), "PNG"),
    "WebP": lambda image: encode(image, "WEBP"),
    "BMP": lambda image: encode(image, "BMP"),
    "animated GIF": lambda image: animated(image, "GIF"),
    "animated PNG": lambda image: animated(image, "PNG"),
    "animated WebP": lambda image: animated(image, "WEBP"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_pixels_are_pils(kind, photograph):
    encoded = IMAGES[kind](photograph)
    expected = np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    pixels = decode(encoded)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_an_exif_rotation_is_not_applied(photograph):
    """timm does not apply it either."""
    assert decode(rotated(photograph)).shape == (301, 403, 3)


def test_an_image_that_pil_accepts_in_spite_of_a_warning_is_accepted(photograph):
    encoded = encode(photograph, quality=95)
    middle = len(encoded) // 2
    damaged = encoded[:middle] + bytes(500) + encoded[middle + 500 :]
    expected = np.asarray(PIL.Image.open(io.BytesIO(damaged)).convert("RGB"))
    np.testing.assert_array_equal(decode(damaged), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda encoded: b"", "zero bytes"),
        (lambda encoded: b"no image at all", "15 bytes that are no image"),
        (lambda encoded: encoded[: len(encoded) // 2], "truncated"),
        (lambda encoded: encoded[:-2], "truncated"),
        (lambda encoded: encoded[:200], "Truncated"),
        (lambda encoded: encoded[:1000] + b"\xff\x33" + encoded[1002:], "broken"),
    ],
)
def test_bytes_that_are_no_whole_image_are_refused(damage, message, photograph):
    with pytest.raises(BadRecordError, match=message):
        decode(damage(encode(photograph)))


def test_samplings_without_a_name_are_left_to_pil(photograph):
    """A wrong byte in the header makes luma four times as fine as chroma in height."""
    encoded = bytearray(encode(photograph, subsampling=0))
    offset = encoded.index(b"\xff\xc0") + 11
    assert encoded[offset] == 0x11
    encoded[offset] = 0x14
    encoded = bytes(encoded)
    with pytest.raises(KeyError):  # Otherwise this would test nothing.
        simplejpeg.decode_jpeg_header(encoded)
    try:
        expected = np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    except OSError:
        with pytest.raises(BadRecordError):
            decode(encoded)
    else:
        np.testing.assert_array_equal(decode(encoded), expected)


def test_sizes_that_pil_refuses_are_refused_at_once():
    """A damaged header asks for 65,000 x 65,000 pixels, which would take 12 GB."""
    encoded = bytearray(encode(PIL.Image.new("RGB", (64, 64))))
    offset = encoded.index(b"\xff\xc0") + 5
    assert encoded[offset : offset + 4] == bytes([0, 64, 0, 64])
    encoded[offset : offset + 4] = bytes([0xFD, 0xE8]) * 2
    with pytest.raises(BadRecordError, match="DecompressionBomb"):
        decode(bytes(encoded))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "GIF"])
def test_other_formats_cut_in_half_are_refused(file_format, photograph):
    encoded = encode(photograph, file_format)
    with pytest.raises(BadRecordError):
        decode(encoded[: len(encoded) // 2])
