"""The memory that the input pipeline takes does not grow."""

import io

import PIL.Image
import pytest
from sklearn.datasets import load_sample_images

from focalnet_jax.data import Labels, RandAugment, Source, TrainTransform, train_batches
from focalnet_jax.tasks.examples import TrainExample


def resident_bytes():
    """The memory of this process and of its workers."""
    import psutil

    this = psutil.Process()
    return sum(p.memory_info().rss for p in [this, *this.children(recursive=True)])


@pytest.mark.extended
@pytest.mark.parametrize("pixels", ["exact", "fast"])
def test_resident_size_is_flat_from_batch_1000_to_10000(pixels):
    """Two workers with the whole recipe on photographs take less than 3 % more."""
    records = []
    for i, image in enumerate(load_sample_images().images * 8):
        stream = io.BytesIO()
        crop = image[10 * i : 10 * i + 200 + 5 * i, :300]
        PIL.Image.fromarray(crop).save(stream, "JPEG", quality=95)
        records.append({"image": stream.getvalue(), "label": i})
    transform = TrainTransform(
        160,
        rand_augment=RandAugment.parse("rand-m9-mstd0.5-inc1"),
        color_jitter=0.4,
        pixels=pixels,
    )
    batches = train_batches(
        Source("photographs", records),
        TrainExample(transform, Labels()),
        batch_size=8,
        seed=0,
        workers=2,
    )
    sizes = {}
    for number in range(1, 10_001):
        batch = next(batches)
        if number in (1000, 10_000):
            sizes[number] = resident_bytes()
    del batch
    batches.close()
    print(f"{pixels}: {sizes[1000] / 2**20:.0f} MiB, {sizes[10_000] / 2**20:.0f} MiB")
    assert sizes[10_000] < 1.03 * sizes[1000]
