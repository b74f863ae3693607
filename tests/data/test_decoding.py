"""Decoding: the pixels are those of PIL, and it refuses what PIL refuses."""

import io

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from sklearn.datasets import load_sample_images

from focalnet_jax.data import BadRecordError
from focalnet_jax.data.images.decoding import decode, decode_crop


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


def by_simplejpeg(image, sampling):
    return simplejpeg.encode_jpeg(np.asarray(image), colorsubsampling=sampling)


def preview(image):
    """EXIF data with a JPEG inside, whose header comes before that of the image."""
    exif = PIL.Image.Exif()
    exif[0x927C] = encode(image.resize((40, 30)))
    return exif


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
    "4:4:0": lambda image: by_simplejpeg(image, "440"),
    "4:1:1": lambda image: by_simplejpeg(image, "411"),
    "restart markers": lambda image: encode(image, restart_marker_blocks=5),
    "EXIF with a preview": lambda image: encode(image, exif=preview(image)),
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


def pixels_in(encoded, box):
    left, upper, right, lower = box
    return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))[
        upper:lower, left:right
    ]


@pytest.mark.parametrize("kind", IMAGES)
def test_crops_have_the_pixels_of_pil(kind, photograph):
    encoded = IMAGES[kind](photograph)
    sizes = []

    def choose_box(width, height):
        sizes.append((width, height))
        return width // 3, height // 4, width, height // 2 + 1

    crop = decode_crop(encoded, choose_box)
    [(width, height)] = sizes
    expected = pixels_in(encoded, choose_box(width, height))
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, expected)


@pytest.mark.parametrize("kind", ["4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1"])
def test_crops_may_end_at_any_row(kind, photograph):
    """Chroma that is coarser in height is interpolated from the block below."""
    encoded = IMAGES[kind](photograph)
    for lower in [*range(1, 36), *range(284, 302)]:
        box = (0, 0, 403, lower)
        crop = decode_crop(encoded, lambda *_, box=box: box)
        np.testing.assert_array_equal(crop, pixels_in(encoded, box))


# Those whose rows are in their order in the file.
SEQUENTIAL = [
    *["4:2:0", "4:2:2", "4:4:4", "4:4:0", "4:1:1", "RGB", "greyscale"],
    *["restart markers", "EXIF with a preview"],
]


@pytest.mark.parametrize("kind", SEQUENTIAL)
def test_what_lies_below_a_crop_is_not_decoded(kind, photograph, monkeypatch):
    rows = []
    whole = simplejpeg.decode_jpeg

    def decode_jpeg(encoded, **options):
        pixels = whole(encoded, **options)
        rows.append(len(pixels))
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", decode_jpeg)
    decode_crop(IMAGES[kind](photograph), lambda *_: (10, 20, 400, 100))
    decode_crop(IMAGES[kind](photograph), lambda *_: (10, 20, 400, 300))
    assert rows[0] in (104, 112)  # whole blocks of 8 or 16
    assert rows[1] == 301


def test_crops_of_damaged_images_are_those_of_pil_or_are_refused(photograph):
    encoded = encode(photograph, quality=95, subsampling=0)
    rng = np.random.default_rng(0)
    box = (0, 0, 403, 150)
    accepted = refused = differing = 0
    for i in range(90):
        damaged = bytearray(encoded)
        for position in rng.integers(len(encoded) - 2, size=3):
            # In every third image, it looks like a marker.
            damaged[position] = rng.integers(256) if i % 3 else 0xFF
            damaged[position + 1] = rng.integers(256)
        damaged = bytes(damaged)
        try:
            expected = pixels_in(damaged, box)
        except OSError:
            refused += 1
            with pytest.raises(BadRecordError):
                decode_crop(damaged, lambda *_: box)
            continue
        accepted += 1
        crop = decode_crop(damaged, lambda *_: box)
        np.testing.assert_array_equal(crop, expected)
        differing += not np.array_equal(crop, pixels_in(encoded, box))
    assert accepted > 10
    assert refused > 2
    assert differing > 10


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
    damaged = damage(encode(photograph))
    with pytest.raises(BadRecordError, match=message):
        decode(damaged)
    with pytest.raises(BadRecordError, match=message):
        decode_crop(damaged, lambda *_: (0, 0, 403, 200))


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
