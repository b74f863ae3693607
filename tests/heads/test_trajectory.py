"""Twenty steps of training a whole segmenter agree with PyTorch, in float64.

The encoder is that of the paper's equations, the heads and the loss are mmsegmentation's,
the optimiser is torch's. The recipe is the official one: AdamW, a linear schedule with a
warmup, and weight decay for everything but what is named a norm, which BatchNorm isn't.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import random_like

from focalnet_jax import create_segmenter
from focalnet_jax.models import abstract_variables
from focalnet_jax.tasks.losses import segmentation_loss
from focalnet_jax.trees import map_named, named_leaves

torch = pytest.importorskip("torch", reason="the reference is written in torch")
import equations  # noqa: E402
import mmsegmentation_heads as reference  # noqa: E402

STEPS, WARMUP, PEAK, DECAY = 20, 6, 3e-3, 0.1
SIZE = (40, 56)
MODEL = create_segmenter(
    "focalnet_tiny_srf",
    depths=(1, 1),
    embed_dim=6,
    focal_levels=(2, 1),
    focal_windows=(3, 3),
    num_classes=reference.CLASSES,
    head_channels=8,
    auxiliary_channels=6,
    head_dropout=0.0,
    drop_path_rate=0.0,
    dtype="float64",
    param_dtype="float64",
)


def rate(step):
    step = jnp.asarray(step, jnp.float64)
    warmup = 1 - jnp.maximum(1 - step / WARMUP, 0) * (1 - 1e-6)
    return PEAK * (1 - step / STEPS) * warmup


def decays(name):
    return "norm" not in name


def make_batches():
    """Images and labels, a few of which are ignored: the same two in turn."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 3, *SIZE, 3))
    labels = rng.integers(reference.CLASSES, size=(2, 3, *SIZE))
    labels = np.where(rng.random(labels.shape) < 0.1, 255, labels).astype(np.int32)
    return images, labels


def train(variables, images, labels):
    """Losses of all steps, and the variables after the last one."""
    optimizer = optax.adamw(
        rate,
        weight_decay=DECAY,
        mask=lambda params: map_named(lambda n, _: decays(n), params),
    )

    def step(carry, index):
        variables, state = carry

        def loss(params):
            (logits, _), new = MODEL.apply(
                variables | {"params": params},
                jnp.array(images)[index % 2],
                train=True,
                mutable=["batch_stats"],
            )
            loss = segmentation_loss(logits, jnp.array(labels)[index % 2])
            return loss.total / (loss.weight + reference.ADDED), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(
            variables["params"]
        )
        updates, state = optimizer.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params} | new, state), value

    @jax.jit
    def run(variables):
        start = variables, optimizer.init(variables["params"])
        (variables, _), losses = jax.lax.scan(step, start, jnp.arange(STEPS))
        return variables, losses

    return run(variables)


def train_in_torch(mmseg, variables, images, labels):
    """The same; the variables are tensors, whose names are ours in the encoder."""
    own = {n: v for n, v in variables["params"].items() if not n.endswith("_head")}
    own = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), own)
    heads = dict(zip(reference.NAMES, reference.build(mmseg, (6, 12))))
    named = named_leaves(own)
    for name, head in heads.items():
        head.load_state_dict(
            reference.state_dict({c: tree[name] for c, tree in variables.items()})
        )
        named |= {f"{name}.{key}": p for key, p in head.named_parameters()}
    optimizer = torch.optim.AdamW(
        [
            dict(params=[p for n, p in named.items() if decays(n)], weight_decay=DECAY),
            dict(params=[p for n, p in named.items() if not decays(n)], weight_decay=0),
        ],
        lr=PEAK,
    )
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = float(rate(step))
        x = torch.tensor(images[step % 2])
        maps = equations.encode(own, x, MODEL.encoder)
        maps = [
            equations.layer_norm(own[f"norm{stage}"], x).movedim(-1, 1)
            for stage, x in enumerate(maps)
        ]
        samples = reference.samples(labels[step % 2])
        loss = sum(h.loss(maps, samples, None)["loss_ce"] for h in heads.values())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    named |= {
        f"{n}.{key}": b for n, head in heads.items() for key, b in head.named_buffers()
    }
    return named, losses


@pytest.mark.usefixtures("float64")
def test_twenty_steps(mmseg):
    variables = random_like(abstract_variables(MODEL))
    batches = make_batches()
    expected, expected_losses = train_in_torch(mmseg, variables, *batches)
    trained, losses = train(variables, *batches)

    assert losses[-1] < losses[0]
    # Adam divides gradients by their own size, which enlarges the rounding of small ones.
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-11)
    params = dict(trained["params"])
    for name in reference.NAMES:
        own = reference.state_dict(
            {"params": params.pop(name), "batch_stats": trained["batch_stats"][name]}
        )
        for key, array in own.items():
            given = expected.pop(f"{name}.{key}").detach()
            np.testing.assert_allclose(array, given, rtol=0, atol=1e-9, err_msg=key)
    for name, array in named_leaves(params).items():
        given = expected.pop(name).detach()
        np.testing.assert_allclose(array, given, rtol=0, atol=1e-9, err_msg=name)
    assert not expected
