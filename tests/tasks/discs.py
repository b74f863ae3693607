"""A task from outside of the package: which pixels of an image belong to a disc?"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from optax import softmax_cross_entropy_with_integer_labels as cross_entropy

from focalnet_jax import create_backbone
from focalnet_jax.data import Source
from focalnet_jax.fields import Field
from focalnet_jax.tasks.base import BatchArray, Loss, Metric, Split, Splits
from focalnet_jax.tasks.registry import TASKS, TaskEntry
from focalnet_jax.weights.description import entries_that_differ

SIDE, VOID = 32, 255  # A target is VOID where pixels don't count.


def draw(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    distance = np.hypot(y - rng.uniform(0.3, 0.7), x - rng.uniform(0.3, 0.7)) - 0.25
    image = rng.integers(100, size=(SIDE, SIDE, 3), dtype=np.uint8)
    image[distance < 0] += 100
    target = np.where(abs(distance) < 0.1 * (seed % 2), VOID, distance < 0)
    return {"image": image, "target": target.astype(np.int32)}


def train_example(record, rng):
    step = rng.choice([-1, 1])
    return {name: array[:, ::step] for name, array in record.items()}


def eval_example(record):
    return record or {name: np.full_like(array, VOID) for name, array in draw(0).items()}


class Segmenter(nn.Module):
    backbone: nn.Module

    @nn.compact
    def __call__(self, images, *, train):
        x = self.backbone(images.astype(jnp.float32) / 255, train=train)[0]
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        logits = nn.Dense(2, name="head")(nn.relu(x))
        return jax.image.resize(logits, (*images.shape[:3], 2), "bilinear")


class IoU:
    """Intersection over union of discs: what is void has no part in it."""

    def __init__(self, predict, batches, source):
        def count(variables, batch):
            given, right = predict(variables, batch).argmax(-1) == 1, batch["target"] == 1
            either = (given | right) & (batch["target"] != VOID)
            return jnp.array([(given & right).sum(), either.sum(), batch["mask"].sum()])

        self.count, self.batches = jax.jit(count), batches

    def run(self, variables, *, name, before_batch):
        sums = 0
        for batch in self.batches():
            before_batch()
            sums += np.array(self.count(variables, batch))
        yield f"{name}/iou", sums[0] / sums[1]
        yield f"{name}/examples", int(sums[2])


class Discs:
    name, title, unit, multiply_adds = "discs", "disc finder", "scenes", None
    metrics = {"iou": Metric("IoU", "{:.1%}", higher_is_better=True, picture="overlap")}
    random_streams, new = ("drop_path",), ("head/",)
    evaluator = IoU
    batch = {
        "image": BatchArray((SIDE, SIDE, 3), np.uint8, ("height", "width", None)),
        "target": BatchArray((SIDE, SIDE), np.int32, ("height", "width")),
    }

    def __init__(self, model):
        self.model = model

    def open(self, *, train):
        seeds = range(96), range(900, 920)
        train, test = (Source(f"discs {of}", [*map(draw, of)]) for of in seeds)
        return Splits(Split(train, train_example), Split(test, eval_example))

    def init(self, key):
        return self.model.init(key, jnp.zeros((1, SIDE, SIDE, 3)), train=False)

    def prepare(self, batch, keys):
        return {name: batch[name] for name in self.batch}

    def loss(self, variables, batch, keys):
        how = dict(train=True, rngs=keys, mutable=["batch_stats"])
        logits, new = self.model.apply(variables, batch["image"], **how)
        valid = batch["target"] != VOID
        losses = cross_entropy(logits, valid * batch["target"]) * valid
        return Loss(losses.sum(), valid.sum() * 1.0, batch_stats=new["batch_stats"])

    def predict(self, variables, batch):
        return self.model.apply(variables, batch["image"], train=False)

    def depth_of(self, name):
        return self.model.backbone.encoder.depth_of(name.removeprefix("backbone/"))

    def description(self, source):
        return {"task": self.name, "levels": self.model.backbone.encoder.focal_levels}

    def differences(self, directory, source):
        return entries_that_differ(directory, self.description(source))


def make(config):
    small = dict(depths=(1,), embed_dim=8, focal_levels=(1,), focal_windows=(3,))
    return Discs(Segmenter(create_backbone(config.discs.name, **small, out_stages=(0,))))


TASKS["discs"] = TaskEntry({"discs.name": Field("focalnet_tiny_srf", "A variant.")}, make)
