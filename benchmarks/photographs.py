"""Makes JPEGs like those of ImageNet from photographs inside Python packages.

    pip install scikit-learn scikit-image matplotlib
    python benchmarks/photographs.py DIR [--count=480] [--masks]

The images are views of nine photographs of scikit-learn, scikit-image and matplotlib, at
random positions and scales. They have 500 x 375 pixels, a quarter of them 375 x 500. The
quality of the JPEGs is the one at which their mean size is nearest to 110 kB, the mean
size of ImageNet's training images. They lie in 20 class directories. The same command
makes the same files.

With `--masks`, they are 200 views of 683 x 512 pixels in ADE20K's layout, each beside a
mask of its tones: like ADE20K's masks, these have large regions with fine edges.
"""

import argparse
import io
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageFilter

MEAN_BYTES = 110_000
CLASSES = 20


def photographs() -> list[PIL.Image.Image]:
    """The nine photographs, in RGB."""
    try:
        import matplotlib
        import skimage
        import sklearn.datasets
    except ImportError as error:
        raise SystemExit(
            f"error: the photographs need {error.name}, which is not there:\n"
            "  pip install scikit-learn scikit-image matplotlib"
        ) from error

    scikit_image = pathlib.Path(skimage.__file__).parent / "data"
    samples = pathlib.Path(matplotlib.__file__).parent / "mpl-data" / "sample_data"
    names = ["astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"]
    names += ["hubble_deep_field.jpg", "retina.jpg"]
    paths = [scikit_image / name for name in names] + [samples / "grace_hopper.jpg"]
    images = map(PIL.Image.fromarray, sklearn.datasets.load_sample_images().images)
    return [*images, *(PIL.Image.open(path).convert("RGB") for path in paths)]


def views(count: int, size: tuple[int, int] = (500, 375)) -> list[PIL.Image.Image]:
    """Random parts of the photographs, a quarter of them upright."""
    originals = photographs()
    rng = np.random.default_rng(0)
    result = []
    for i in range(count):
        original = originals[i % len(originals)]
        width, height = size if rng.random() < 0.75 else size[::-1]
        scale = rng.uniform(0.85, 1) * min(
            original.width / width, original.height / height
        )
        w, h = int(width * scale), int(height * scale)
        left = int(rng.integers(original.width - w + 1))
        upper = int(rng.integers(original.height - h + 1))
        view = original.crop((left, upper, left + w, upper + h))
        result.append(view.resize((width, height), PIL.Image.Resampling.LANCZOS))
    return result


def encode(image: PIL.Image.Image, quality: int) -> bytes:
    """The bytes of a JPEG."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def make(directory: pathlib.Path, *, count: int = 480) -> None:
    """Writes files `CLASS/xxx.jpg`, and prints their mean size."""
    images = views(count)
    qualities = {
        quality: np.mean([len(encode(image, quality)) for image in images[:90]])
        for quality in range(85, 100)
    }
    quality = min(qualities, key=lambda q: abs(qualities[q] - MEAN_BYTES))
    sizes = []
    for i, image in enumerate(images):
        path = directory / f"class{i % CLASSES:02}" / f"{i:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        sizes.append(path.write_bytes(encode(image, quality)))
    print(
        f"{directory}: {count} JPEGs of quality {quality}, {np.mean(sizes):,.0f} bytes "
        "in the mean"
    )


def make_pairs(directory: pathlib.Path, *, count: int = 200) -> None:
    """Writes `images/training/xxx.jpg` and `annotations/training/xxx.png`."""
    for kind in ("images", "annotations"):
        (directory / kind / "training").mkdir(parents=True, exist_ok=True)
    sizes = []
    for i, image in enumerate(views(count, (683, 512))):
        smooth = image.convert("L").filter(PIL.ImageFilter.GaussianBlur(4))
        # Ten tones, as 0 and nine of ADE20K's 150 classes.
        mask = PIL.Image.fromarray(np.asarray(smooth) // 28 * 16)
        files = []
        for kind, ending, encoded in (
            ("images", "jpg", encode(image, 95)),
            ("annotations", "png", _png(mask)),
        ):
            path = directory / kind / "training" / f"{i:04}.{ending}"
            files.append(path.write_bytes(encoded))
        sizes.append(files)
    jpeg, png = np.mean(sizes, axis=0)
    print(f"{directory}: {count} JPEGs of {jpeg:,.0f} bytes and masks of {png:,.0f}")


def _png(image: PIL.Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--masks", action="store_true", help="beside their masks")
    args = parser.parse_args()
    options = {} if args.count is None else {"count": args.count}
    (make_pairs if args.masks else make)(args.directory, **options)
