"""Measures how much the pixels of `data.pixels=fast` differ from PIL's.

    pip install '.[fast]' scikit-image matplotlib
    python benchmarks/fast_pixels.py [--count=90]

It compares the random resized crop to 224 pixels, and each operation of RandAugment
alone on the exact crop, at magnitude 9 and in both directions where there are two. The
images are views of photographs (benchmarks/photographs.py). It prints absolute
differences of levels, out of 255: the mean over all images, the mean in the worst image,
and the greatest.
"""

import argparse

import numpy as np
import PIL.Image
from photographs import encode, views

from focalnet_jax.data import TrainTransform
from focalnet_jax.data.images import exact as exact_images
from focalnet_jax.data.images import fast as fast_images
from focalnet_jax.data.images.randaugment import (
    INCREASING_OPERATIONS,
    OPERATIONS,
    RandAugment,
    apply_operations,
)


class Drawn:
    """Stands for a random generator that draws one operation, in one direction."""

    def __init__(self, index, negative):
        self._index, self._negative, self._draws = index, negative, 0

    def integers(self, count, size=None):
        return [self._index] if size else 0

    def random(self):
        self._draws += 1
        return 1.0 if self._negative and self._draws > 1 else 0.0


def differences(exact, fast):
    """The mean and the greatest absolute difference of two images."""
    absolute = np.abs(np.asarray(exact).astype(int) - np.asarray(fast))
    return absolute.mean(), absolute.max()


def show(name, results):
    """Prints a line of the table, from the mean and greatest difference in each image."""
    means, greatest = np.array(results).T
    print(f"{name:24}{means.mean():8.3f}{means.max():14.3f}{greatest.max():10.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=90, help="number of images")
    args = parser.parse_args()
    encoded = [encode(view, 98) for view in views(args.count)]
    print(f"{'':24}{'mean':>8}{'worst image':>14}{'greatest':>10}")
    crops = {}
    for pixels in ("exact", "fast"):
        transform = TrainTransform(224, pixels=pixels)
        crops[pixels] = [
            transform(image, np.random.default_rng(i)) for i, image in enumerate(encoded)
        ]
    show("crop", list(map(differences, crops["exact"], crops["fast"])))
    for names in (OPERATIONS, INCREASING_OPERATIONS):
        for index, name in enumerate(names):
            if names is INCREASING_OPERATIONS and name in OPERATIONS:
                continue
            policy = RandAugment(9, layers=1, increasing=names is INCREASING_OPERATIONS)
            results = []
            for negative in (False, True):
                operations = policy.draw(Drawn(index, negative), ["bicubic"])
                for crop in crops["exact"]:
                    image = PIL.Image.fromarray(crop)
                    fill = TrainTransform(224).fill
                    results.append(
                        differences(
                            apply_operations(image, operations, exact_images, fill=fill),
                            apply_operations(crop, operations, fast_images, fill=fill),
                        )
                    )
            show(name, results)


if __name__ == "__main__":
    main()
