"""Decodes masks: images of which each pixel is an index of a class."""

import io

import numpy as np
import PIL.Image

from focalnet_jax.data.bad_records import BadRecordError

# Modes of PIL whose pixels are whole numbers in one channel. A palette gives colours to
# indices, which are what counts.
_INDICES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")


def decode_mask(encoded: bytes) -> np.ndarray:
    """Decodes a mask to its indices, whole numbers `[h, w]`: uint8 for most files.

    PNGs may have a palette, 1 to 8 bits or 16 bits.

    Raises:
      BadRecordError: it is no image, is damaged, has several channels, or is a JPEG,
        whose compression changes indices.
    """
    if not encoded:
        raise BadRecordError("its mask has zero bytes")
    try:
        image = PIL.Image.open(io.BytesIO(encoded))
        if image.format == "JPEG":
            raise BadRecordError(
                "its mask is a JPEG, whose compression has changed the indices: masks "
                "have to be made anew as PNG"
            )
        if image.mode not in _INDICES:
            channels = len(image.getbands())
            what = f"{channels} channels" if channels > 1 else "fractions for pixels"
            raise BadRecordError(
                f"its mask has {what} (PIL calls it {image.mode}), where one channel "
                "with the indices of classes is needed"
            )
        pixels = np.asarray(image)
    except BadRecordError:
        raise
    except PIL.UnidentifiedImageError as error:
        raise BadRecordError(f"its mask is {len(encoded):,} bytes, no image") from error
    except Exception as error:  # PIL's decoders raise errors of many classes.
        raise BadRecordError(f"its mask: {type(error).__name__}: {error}") from error
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
