"""The heads and their loss agree with mmsegmentation's own, in float64.

Both sides have the same parameters, averages and maps, so a difference is one of
arithmetic and not of rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import random_like

from focalnet_jax.heads import FCNHead, SegmenterLogits, UPerNetHead
from focalnet_jax.tasks.losses import segmentation_loss

torch = pytest.importorskip("torch", reason="the reference is written in torch")
import mmsegmentation_heads as reference  # noqa: E402

pytestmark = pytest.mark.usefixtures("float64")

CHANNELS = (4, 6, 8, 10)
TYPES = dict(dtype=jnp.float64, param_dtype=jnp.float64)
HEADS = {
    "decode_head": UPerNetHead(reference.CLASSES, channels=8, drop_rate=0.0, **TYPES),
    "auxiliary_head": FCNHead(reference.CLASSES, channels=6, drop_rate=0.0, **TYPES),
}
# Some hundred operations round by 2e-16 each, relative to the greatest value.
EXACT = 1e-12


def make_maps(height=49, width=37, batch=2):
    """Maps of four stages, of sizes that don't divide; the last is smaller than 6 x 6."""
    rng = np.random.default_rng(0)
    sizes = [(height // 2**s, width // 2**s) for s in range(len(CHANNELS))]
    return [rng.normal(size=(batch, *s, c)) for s, c in zip(sizes, CHANNELS)]


def make_labels(height=98, width=74, batch=2):
    """Classes of pixels, and four in ten without one."""
    rng = np.random.default_rng(1)
    labels = rng.integers(reference.CLASSES, size=(batch, height, width))
    return np.where(rng.random(labels.shape) < 0.4, 255, labels).astype(np.int32)


def variables_of(maps):
    def init(head, *inputs, **options):
        return jax.eval_shape(
            lambda: head.init(jax.random.key(0), *inputs, train=False, **options)
        )

    return {
        "decode_head": random_like(
            init(HEADS["decode_head"], maps, valid=[None] * len(maps))
        ),
        "auxiliary_head": random_like(init(HEADS["auxiliary_head"], maps[-2])),
    }


def apply(variables, maps, *, train):
    """The logits of both heads, and their next averages."""
    changes = dict(train=train, mutable=["batch_stats"])
    logits, decode = HEADS["decode_head"].apply(
        variables["decode_head"], maps, valid=[None] * len(maps), **changes
    )
    auxiliary, aux = HEADS["auxiliary_head"].apply(
        variables["auxiliary_head"], maps[-2], **changes
    )
    averages = {"decode_head": decode, "auxiliary_head": aux}
    return SegmenterLogits(logits, auxiliary), averages


def in_torch(array, **options):
    return torch.tensor(np.moveaxis(array, -1, 1), **options)


def assert_close(given, expected, tolerance=EXACT, message=""):
    expected = np.asarray(expected)
    scale = max(np.abs(expected).max(), 1e-3)  # Some gradients are zero but for rounding.
    np.testing.assert_allclose(
        given, expected, rtol=0, atol=tolerance * scale, err_msg=message
    )


def heads_of(mmseg, variables):
    heads = reference.build(mmseg, CHANNELS)
    for head, own in zip(heads, variables.values()):
        head.load_state_dict(reference.state_dict(own))
    return heads


def test_logits_in_evaluation(mmseg):
    maps = make_maps()
    variables = variables_of(maps)
    given, unchanged = jax.jit(lambda v, m: apply(v, m, train=False))(variables, maps)
    for head, logits in zip(heads_of(mmseg, variables), given):
        with torch.no_grad():
            expected = head.eval()([in_torch(x) for x in maps])
        assert_close(np.moveaxis(logits, -1, 1), expected)
    for name, own in unchanged.items():
        jax.tree.map(
            np.testing.assert_array_equal,
            own["batch_stats"],
            variables[name]["batch_stats"],
        )


def test_loss_gradients_and_averages_in_training(mmseg):
    """One step of both heads, from maps and labels to all that it changes.

    The whole map is pooled to one position, of which the batch has two. BatchNorm divides
    them by the difference between them, and so enlarges their rounding.
    """
    tolerance = 1e-11
    maps, labels = make_maps(), make_labels()
    variables = variables_of(maps)

    def loss(params, maps):
        given = {n: variables[n] | {"params": own} for n, own in params.items()}
        logits, averages = apply(given, maps, train=True)
        loss = segmentation_loss(logits, labels)
        weight = loss.weight + reference.ADDED
        parts = {name: part / weight for name, part in loss.parts.items()}
        return loss.total / weight, (parts, averages)

    params = {name: own["params"] for name, own in variables.items()}
    (total, (parts, averages)), (gradients, of_maps) = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    )(params, maps)

    heads = heads_of(mmseg, variables)
    given_maps = [in_torch(x, requires_grad=True) for x in maps]
    expected = [
        head.loss(given_maps, reference.samples(labels), None)["loss_ce"]
        for head in heads
    ]
    sum(expected).backward()

    assert_close(total, sum(expected).item(), tolerance)
    assert_close(parts["decode_loss"], expected[0].item(), tolerance)
    assert_close(parts["auxiliary_loss"], expected[1].item() / 0.4, tolerance)
    for given, reference_map in zip(of_maps, given_maps):
        assert_close(np.moveaxis(given, -1, 1), reference_map.grad, tolerance)
    for head, name in zip(heads, variables):
        own = reference.state_dict({"params": gradients[name]})
        for key, parameter in head.named_parameters():
            assert_close(own.pop(key), parameter.grad, tolerance, key)
        assert not own
        own = reference.state_dict(averages[name])
        for key, buffer in head.named_buffers():
            assert_close(own.pop(key), buffer, tolerance, key)
        assert not own


@pytest.mark.parametrize("loss_over", ["all", "labelled"])
def test_both_means_of_the_loss(mmseg, loss_over):
    """The second is torch's own, too; both with gradients, on labels of another size."""
    rng = np.random.default_rng(0)
    logits = (
        rng.normal(size=(2, 12, 9, reference.CLASSES)),
        rng.normal(size=(2, 3, 2, reference.CLASSES)),
    )
    labels = make_labels(49, 37)

    def mean(logits):
        loss = segmentation_loss(SegmenterLogits(*logits), labels, loss_over=loss_over)
        return loss.total / (loss.weight + reference.ADDED)

    given, gradients = jax.jit(jax.value_and_grad(mean))(logits)
    heads = reference.build(mmseg, CHANNELS, avg_non_ignore=loss_over == "labelled")
    inputs = [in_torch(own, requires_grad=True) for own in logits]
    expected = sum(
        head.loss_by_feat(own, reference.samples(labels))["loss_ce"]
        for head, own in zip(heads, inputs)
    )
    expected.backward()
    assert_close(given, expected.item())
    for own, reference_logits in zip(gradients, inputs):
        assert_close(np.moveaxis(own, -1, 1), reference_logits.grad)
    if loss_over == "labelled":
        large = [
            torch.nn.functional.interpolate(own, (49, 37), mode="bilinear")
            for own in inputs
        ]
        targets = torch.tensor(labels).long()
        losses = [
            torch.nn.functional.cross_entropy(own, targets, ignore_index=255)
            for own in large
        ]
        # Without what mmsegmentation adds.
        given = given * (1 + reference.ADDED / np.sum(labels != 255))
        assert_close(given, (losses[0] + 0.4 * losses[1]).item())


def test_a_batch_without_labels_has_a_loss_of_zero():
    """And gradients of zero, neither of them NaN."""
    logits = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 2, 2, 3))
    labels = jnp.full((2, 8, 8), 255, jnp.int32)

    def total(logits):
        loss = segmentation_loss(SegmenterLogits(*logits), labels, loss_over="labelled")
        return loss.total, loss.weight

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (loss, weight), gradients = run(logits)
    assert loss == weight == 0
    assert not any(np.any(own) for own in gradients)
