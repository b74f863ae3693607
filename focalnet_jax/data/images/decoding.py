"""Encoded images to RGB pixels: those of PIL's decoder, to the last bit, sooner."""

import io

import numpy as np
import PIL.Image
import simplejpeg

from focalnet_jax.data.bad_records import BadRecordError


def decode(encoded: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP ... to `uint8 [h, w, 3]` as PIL's `convert("RGB")` does.

    So does timm, with all that follows: greyscale is repeated, CMYK converted without a
    colour profile, transparency dropped, 16-bit grey clipped, an animation is its first
    frame, and an EXIF rotation is not applied.

    Raises:
      BadRecordError: the bytes are empty, cut off, damaged beyond PIL's patience, or of a
        format that PIL doesn't know.
    """
    if encoded[:2] == b"\xff\xd8":  # JPEG
        try:
            # PIL's own library, libjpeg-turbo, without the detour through PIL's images.
            # Its conversion of CMYK is another one, though.
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
            # It has no limit to what damaged bytes may ask for.
            is_small = height * width <= PIL.Image.MAX_IMAGE_PIXELS
            if is_small and colorspace in ("YCbCr", "Gray", "RGB"):
                return simplejpeg.decode_jpeg(encoded)
        except (ValueError, KeyError):  # a KeyError: a sampling that it has no name for
            pass  # Even a warning: PIL decides what can still be used.
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        what = f"{len(encoded):,} bytes that are no image" if encoded else "zero bytes"
        raise BadRecordError(what) from error
    except Exception as error:  # PIL's formats raise all kinds of them
        raise BadRecordError(f"{type(error).__name__}: {error}") from error
