"""Decodes images to RGB pixels: exactly those of PIL, but faster."""

import io

import numpy as np
import PIL.Image
import simplejpeg

from focalnet_jax.data.bad_records import BadRecordError


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
    if encoded[:2] == b"\xff\xd8":  # JPEG
        try:
            # simplejpeg calls libjpeg-turbo, as PIL does, but makes no PIL image between.
            # It converts CMYK otherwise than PIL, so PIL decodes that.
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
            # It has no limit of its own, and a damaged header may state any size.
            is_small = height * width <= PIL.Image.MAX_IMAGE_PIXELS
            if is_small and colorspace in ("YCbCr", "Gray", "RGB"):
                return simplejpeg.decode_jpeg(encoded)
        except (ValueError, KeyError):
            # It raises ValueError even for a warning, and KeyError for a chroma sampling
            # that it has no name for. PIL decides whether the image can be used.
            pass
    try:
        return np.asarray(PIL.Image.open(io.BytesIO(encoded)).convert("RGB"))
    except PIL.UnidentifiedImageError as error:
        what = f"{len(encoded):,} bytes that are no image" if encoded else "zero bytes"
        raise BadRecordError(what) from error
    except Exception as error:  # PIL's decoders raise errors of many classes.
        raise BadRecordError(f"{type(error).__name__}: {error}") from error
