"""Whole images, windows, several scales and mirror images: mmsegmentation's procedures.

Three images of odd sizes lie on one canvas. The net is a convolution with stride 4, in
both frameworks. All is computed in float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from focalnet_jax.heads.views import (
    Windows,
    classes_of,
    make_view,
    probabilities,
)

CLASSES = 5
SIZES = np.array([(37, 50), (64, 41), (20, 33)])  # that the net sees
ORIGINAL = np.array([(55, 71), (40, 90), (23, 30)])
CANVAS = (96, 96)

pytestmark = pytest.mark.usefixtures("float64")
# Sums of a few hundred products, of numbers of order 1, in another order.
EXACT = dict(rtol=1e-10, atol=1e-12)


def kernel():
    """Makes logits of order 1."""
    return np.random.default_rng(3).normal(size=(4, 4, 3, CLASSES)) / np.sqrt(48)


def net(images, valid):
    """What the official code does: sides are padded to multiples of 4."""
    pads = [(0, 0), *((0, -side % 4) for side in images.shape[1:3]), (0, 0)]
    logits = jax.lax.conv_general_dilated(
        jnp.pad(images, pads),
        jnp.array(kernel()),
        (4, 4),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return logits, -(-valid // 4)


def images_of(sizes, seed=0):
    """Random images, and a canvas with all of them, whose rest is no zero."""
    rng = np.random.default_rng(seed)
    images = [rng.normal(size=(*size, 3)) for size in sizes]
    canvas = rng.normal(size=(len(sizes), *sizes.max(0) + 3, 3))
    for row, image in zip(canvas, images):
        row[: image.shape[0], : image.shape[1]] = image
    return images, jnp.array(canvas)


def view_of(sizes=SIZES, seed=0, **options):
    _, canvas = images_of(sizes, seed)
    return make_view(
        net,
        canvas,
        valid=jnp.array(sizes),
        size=jnp.array(ORIGINAL),
        canvas=CANVAS,
        **options,
    )


@pytest.fixture
def reference(mmseg, torch):
    """A function that infers an image as mmsegmentation does, with the same net."""
    from mmengine import ConfigDict
    from mmseg.models import EncoderDecoder
    from mmseg.models.utils import resize
    from mmseg.structures import SegDataSample

    weights = torch.tensor(kernel().transpose(3, 2, 0, 1))

    class Net(EncoderDecoder):
        def __init__(self, **test_cfg):
            torch.nn.Module.__init__(self)
            self.test_cfg = ConfigDict(test_cfg)
            self.align_corners, self.out_channels = False, CLASSES
            self.decode_head = ConfigDict(out_channels=CLASSES)

        def encode_decode(self, inputs, batch_img_metas):
            *_, height, width = inputs.shape
            padded = torch.nn.functional.pad(inputs, (0, -width % 4, 0, -height % 4))
            logits = torch.nn.functional.conv2d(padded, weights, stride=4)
            return resize(logits, (height, width), mode="bilinear", align_corners=False)

    def infer(image, original, *, mirror=False, **test_cfg):
        inputs = torch.tensor(image.transpose(2, 0, 1)[None])
        inputs = inputs.flip(3) if mirror else inputs
        meta = dict(
            img_path="none",
            ori_shape=tuple(original.tolist()),
            img_shape=image.shape[:2],
            pad_shape=image.shape[:2],
            padding_size=[0, 0, 0, 0],
            flip=mirror,
            flip_direction="horizontal",
        )
        model = Net(**test_cfg)
        logits = model.inference(inputs, [dict(meta)])
        [sample] = model.postprocess_result(logits, [SegDataSample(metainfo=meta)])
        return sample

    return infer


def merged(samples, mmseg, torch):
    """The mean of several views, as mmsegmentation takes it at test time."""
    from mmseg.models.segmentors.seg_tta import SegTTAModel

    tta = SegTTAModel.__new__(SegTTAModel)
    torch.nn.Module.__init__(tta)
    tta.module = torch.nn.Module()
    tta.module.out_channels = CLASSES
    [result] = tta.merge_preds([samples])
    return result


def assert_same(views, samples):
    """The softmax of each image, and the classes, where an image is."""
    given, classes = probabilities(views), classes_of(views, band=3000)
    np.testing.assert_array_equal(classes, classes_of(views))
    for row, labels, sample, (height, width) in zip(given, classes, samples, ORIGINAL):
        expected = sample.seg_logits.data.softmax(0).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(row[:height, :width], expected, **EXACT)
        np.testing.assert_array_equal(
            labels[:height, :width], sample.pred_sem_seg.data[0].numpy()
        )


@pytest.mark.parametrize("mirror", [False, True])
def test_whole_images(reference, mirror):
    images, _ = images_of(SIZES)
    samples = [
        reference(image, original, mirror=mirror, mode="whole")
        for image, original in zip(images, ORIGINAL)
    ]
    assert_same([view_of(mirror=mirror)], samples)


@pytest.mark.parametrize(
    ("window", "stride"),
    [((24, 28), (16, 20)), ((24, 24), (24, 24)), ((50, 17), (33, 5))],
)
@pytest.mark.parametrize("mirror", [False, True])
def test_windows(reference, window, stride, mirror):
    """Images that are smaller than a window, or end between two, among others."""
    images, _ = images_of(SIZES)
    samples = [
        reference(
            image,
            original,
            mirror=mirror,
            mode="slide",
            crop_size=window,
            stride=stride,
        )
        for image, original in zip(images, ORIGINAL)
    ]
    assert_same([view_of(mirror=mirror, windows=Windows(window, stride))], samples)


@pytest.mark.parametrize("windows", [None, Windows((24, 28), (16, 20))])
def test_the_mean_of_scales_and_mirror_images(reference, windows, mmseg, torch):
    scales = [SIZES, (SIZES * 0.5 + 0.5).astype(int), (SIZES * 1.25 + 0.5).astype(int)]
    mode = dict(mode="whole")
    if windows:
        mode = dict(mode="slide", crop_size=windows.size, stride=windows.stride)
    views, each = [], [[] for _ in ORIGINAL]
    for seed, sizes in enumerate(scales):
        for mirror in (False, True):
            views.append(view_of(sizes, seed, mirror=mirror, windows=windows))
            images, _ = images_of(sizes, seed)
            for samples, image, original in zip(each, images, ORIGINAL):
                samples.append(reference(image, original, mirror=mirror, **mode))
    given, classes = probabilities(views), classes_of(views, band=3000)
    for row, labels, samples, (height, width) in zip(given, classes, each, ORIGINAL):
        expected = sum(sample.seg_logits.data.softmax(0) for sample in samples) / 6
        np.testing.assert_allclose(
            row[:height, :width], expected.permute(1, 2, 0).numpy(), **EXACT
        )
        result = merged(samples, mmseg, torch)
        np.testing.assert_array_equal(
            labels[:height, :width], result.pred_sem_seg.data[0].numpy()
        )


def test_float32_is_near(torch):
    """With logits of bfloat16, too, all that follows is float32."""
    _, canvas = images_of(SIZES)
    exact = probabilities([view_of()])

    def rounded(images, valid):
        logits, sizes = net(images, valid)
        return logits.astype(jnp.float32), sizes

    given = probabilities(
        [
            make_view(
                rounded,
                canvas,
                valid=jnp.array(SIZES, jnp.int32),
                size=jnp.array(ORIGINAL, jnp.int32),
                canvas=CANVAS,
            )
        ]
    )
    assert given.dtype == jnp.float32
    for row, expected, (height, width) in zip(given, exact, ORIGINAL):
        # Logits of order 1 in float32, of which four are weighed in two steps.
        np.testing.assert_allclose(
            row[:height, :width], expected[:height, :width], atol=3e-6
        )
