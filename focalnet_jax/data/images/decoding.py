"""Decodes images to RGB pixels: exactly those of PIL, but faster."""

import io
from collections.abc import Callable

import numpy as np
import PIL.Image
import simplejpeg

from focalnet_jax.data.bad_records import BadRecordError

ChooseBox = Callable[[int, int], tuple[int, int, int, int]]

# The markers of JPEGs: of frames whose rows lie in their order, baseline and extended
# sequential with Huffman coding; of a scan; and of the end.
_SEQUENTIAL_FRAMES = (b"\xff\xc0", b"\xff\xc1")
_SCAN = b"\xff\xda"
_END = b"\xff\xd9"


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP or the like to `uint8 [h, w, 3]`.

    The result is that of PIL's `convert("RGB")`, which timm uses, too: greyscale is
    repeated in all channels, CMYK is converted without a colour profile, transparency is
    dropped, 16-bit grey is clipped, an animation is reduced to its first frame, and an
    EXIF rotation is not applied.

    Raises:
      BadRecordError: the bytes are empty, cut off, too damaged for PIL, or of a format
        that PIL doesn't know.
    """
    if _size_of_jpeg(encoded):
        try:
            return simplejpeg.decode_jpeg(encoded)
        except ValueError:  # Raised for a warning, too. PIL decides about the image.
            pass
    return _decode_by_pil(encoded)


def decode_crop(encoded: bytes, choose_box: ChooseBox) -> np.ndarray:
    """Decodes a crop of an image to `uint8 [h, w, 3]`.

    The pixels are those of `decode`, and the same images are refused. Most JPEGs are
    decoded down to the last row of the crop.

    Args:
      encoded: the bytes of the image.
      choose_box: a function from the width and height of the image to the left, upper,
        right and lower edge of the crop, in pixels. It is called once.

    Raises:
      BadRecordError: as `decode`.
    """
    size = _size_of_jpeg(encoded)
    if size is None:
        pixels = decode(encoded)
        left, upper, right, lower = choose_box(pixels.shape[1], pixels.shape[0])
        return pixels[upper:lower, left:right]
    left, upper, right, lower = choose_box(*size)
    shortened = _shortened(encoded, size, lower)
    try:
        # That something follows the last row is a warning, thus an error if strict.
        pixels = simplejpeg.decode_jpeg(shortened or encoded, strict=shortened is None)
    except ValueError:
        pixels = _decode_by_pil(encoded)
    return pixels[upper:lower, left:right]


def _size_of_jpeg(encoded: bytes) -> tuple[int, int] | None:
    """The width and height of a JPEG that simplejpeg decodes as PIL does.

    simplejpeg calls libjpeg-turbo, as PIL does, but makes no PIL image between.
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
    except (ValueError, KeyError):  # KeyError: a chroma sampling that has no name there
        return None
    # It has no limit of its own, and a damaged header may state any size. And it converts
    # CMYK otherwise than PIL.
    is_small = height * width <= PIL.Image.MAX_IMAGE_PIXELS
    is_alike = colorspace in ("YCbCr", "Gray", "RGB")
    return (width, height) if is_small and is_alike else None


def _shortened(encoded: bytes, size: tuple[int, int], lower: int) -> bytearray | None:
    """A JPEG whose header states fewer rows, so that decoding ends after them.

    The rows above `lower` are the same. The result is None for JPEGs whose rows don't lie
    in their order, for those with a fault that libjpeg would not notice any more, and
    where too little would be saved.
    """
    width, height = size
    if encoded[-2:] != _END:  # Something is cut off, or follows.
        return None
    # Segments have a marker of two bytes, the length of what follows, and contents.
    start, frame = 2, None
    while (marker := encoded[start : start + 2]) != _SCAN:
        if marker in _SEQUENTIAL_FRAMES:
            frame = encoded[start + 4 : start + 22]
            position_of_rows = start + 5
        length = int.from_bytes(encoded[start + 2 : start + 4])
        if marker[:1] != b"\xff" or length < 2:
            return None
        start += 2 + length
    # A frame has the precision, height, width, number of components, and of each its
    # identifier, its sampling factors (the vertical one in the lower bits) and a table.
    if not frame or frame[:5] != b"\x08" + height.to_bytes(2) + width.to_bytes(2):
        return None
    block = 8 * max(sampling & 15 for sampling in frame[7 : 6 + 3 * frame[5] : 3])
    # The last row in a block needs the chroma of the next block.
    rows = (lower // block + 1) * block
    # The search for markers takes as long as decoding some of the rows.
    if rows > height * 31 / 32 or _has_markers(encoded, start + 4):
        return None
    shortened = bytearray(encoded)
    shortened[position_of_rows : position_of_rows + 2] = rows.to_bytes(2)
    return shortened


def _has_markers(encoded: bytes, start: int) -> bool:
    """Whether a scan has markers, but those at which a decoder may start again."""
    scan = np.frombuffer(encoded, np.uint8, offset=start)[: -len(_END)]
    marked = scan[:-1] == 0xFF
    marked &= scan[1:] != 0
    return bool(marked.any() and (scan[1:][marked] & 0xF8 != 0xD0).any())


def _decode_by_pil(encoded: bytes) -> np.ndarray:
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        what = f"{len(encoded):,} bytes that are no image" if encoded else "zero bytes"
        raise BadRecordError(what) from error
    except Exception as error:  # PIL's decoders raise errors of many classes.
        raise BadRecordError(f"{type(error).__name__}: {error}") from error
