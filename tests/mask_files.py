"""Writes small images and masks, each of its own content."""

import io
import pathlib
import zlib

import numpy as np
import PIL.Image


def rng_of(name):
    """A random generator that depends on a name alone."""
    return np.random.default_rng(zlib.crc32(str(name).encode()))


def image_of(name, size=(20, 30)):
    """A smooth picture, uint8 `[*size, 3]`."""
    coarse = rng_of(name).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(coarse).resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    return np.asarray(picture)


def mask_of(name, size=(20, 30), indices=(0, 1, 2, 255)):
    """Patches of some indices, uint8 `[*size]`."""
    coarse = rng_of(f"mask of {name}").choice(indices, (4, 5)).astype(np.uint8)
    picture = PIL.Image.fromarray(coarse).resize(size[::-1], PIL.Image.Resampling.NEAREST)
    return np.asarray(picture)


def encode(pixels, kind="PNG", **options):
    """The bytes of a file."""
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(root, files):
    """Writes files by their paths: bytes, or images and masks that follow from the path.

    Paths that end in `.png` become masks, others images.
    """
    if not isinstance(files, dict):
        files = dict.fromkeys(files)
    for path, content in files.items():
        place = pathlib.Path(root, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = encode(mask_of(path) if path.endswith(".png") else image_of(path))
        place.write_bytes(content)
    return pathlib.Path(root)


def ade(root, counts=(("training", 5), ("validation", 3))):
    """A folder in ADE20K's layout, with masks of the indices 0 to 3."""
    files = {}
    for split, count in counts:
        for number in range(count):
            name = f"{split}/ADE_{number:03}"
            size = (20 + number, 30)
            files[f"images/{name}.jpg"] = encode(image_of(name, size), "JPEG", quality=90)
            mask = mask_of(name, size, indices=(0, 1, 2, 3))
            files[f"annotations/{name}.png"] = encode(mask)
    return write(root, files)
