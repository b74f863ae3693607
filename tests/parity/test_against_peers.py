"""Our nets compared with those of timm and transformers, up to twenty training steps.

The relative error of a tensor is the greatest |ours - theirs| over the greatest |theirs|.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import classification, random_params

from focalnet_jax import create_model
from focalnet_jax.convert import to_torch
from focalnet_jax.models.modulation import FocalModulation
from focalnet_jax.models.variants import VARIANTS
from focalnet_jax.parity.compare import difference
from focalnet_jax.tasks.images import normalize
from focalnet_jax.train import default_config
from focalnet_jax.train.optimizer import make_optimizer
from focalnet_jax.train.schedule import warmup_cosine
from focalnet_jax.train.state import TrainState
from focalnet_jax.train.step import make_train_step

FLOAT64 = dict(dtype="float64", param_dtype="float64")

# The frameworks sum up to some thousand terms in different orders, in up to 24 blocks.
# Errors of 1e-15 were seen in outputs, and of 1e-13 in gradients, where more cancels.
TIGHT = 1e-10

# A rounding in float32 has an error of 6e-8, and the sums lose two more digits.
SINGLE = 2e-5


@dataclasses.dataclass(frozen=True)
class Case:
    """A variant with few channels and blocks, and with all of its other options."""

    name: str
    size: tuple[int, int] = (64, 64)
    batch: int = 2
    stages: int = 4
    overrides: dict = dataclasses.field(default_factory=dict)
    peers: tuple[str, ...] = ("timm", "transformers")

    def model(self, **options):
        if self.name.endswith("_iso"):
            cut = dict(depths=(2,))
        else:
            per_stage = VARIANTS[self.name]
            cut = dict(
                depths=(1,) * self.stages,
                focal_levels=per_stage["focal_levels"][: self.stages],
                focal_windows=per_stage["focal_windows"][: self.stages],
            )
        overrides = cut | self.overrides | options
        return create_model(self.name, num_classes=5, embed_dim=8, **overrides)

    def images(self):
        rng = np.random.default_rng(1)
        return rng.normal(size=(self.batch, *self.size, 3))

    def __str__(self):
        height, width = self.size
        changed = "".join(f"-{k}={v}" for k, v in self.overrides.items())
        return f"{self.name}-{height}x{width}x{self.batch}{changed}"


ISO = ("transformers",)  # timm's stem always has a stride of 4.
PADDED = dict(overrides=dict(pad_to_patch=True), peers=("transformers",))

# The default run has each option on and off, both peers, non-square and odd sizes and a
# batch of one, in two stages. The extended run has every variant in four stages.
DEFAULT = [
    Case("focalnet_tiny_srf", (16, 24), stages=2),
    Case("focalnet_base_lrf", (19, 13), stages=2, **PADDED),
    Case("focalnet_base_iso", (48, 64), batch=1, peers=ISO),
    Case("focalnet_large_fl4", (32, 24), stages=2),
    Case("focalnet_huge_fl3", (21, 35), stages=2, **PADDED),
]
EXTENDED = [
    Case("focalnet_tiny_srf", (64, 96)),
    Case("focalnet_tiny_srf", (37, 64), batch=1, **PADDED),
    Case("focalnet_tiny_lrf"),
    Case("focalnet_small_srf", overrides=dict(depths=(2, 1, 3, 1))),
    Case("focalnet_small_lrf", (32, 64), batch=1),
    Case("focalnet_base_srf", overrides=dict(mlp_ratio=2.0)),
    Case("focalnet_base_lrf", (71, 53), **PADDED),
    Case("focalnet_base_lrf", (71, 53), peers=("timm",)),
    Case("focalnet_tiny_iso", (64, 64), peers=ISO),
    Case("focalnet_small_iso", (100, 33), **PADDED),
    Case("focalnet_large_fl3", (64, 96)),
    Case("focalnet_large_fl4"),
    Case("focalnet_large_fl4", (61, 75), **PADDED),
    Case("focalnet_large_fl4", (75, 61), peers=("timm",)),
    Case("focalnet_xlarge_fl3"),
    Case("focalnet_xlarge_fl4"),
    Case("focalnet_xlarge_fl4", overrides=dict(normalize_modulator=True)),
    Case("focalnet_huge_fl3", (61, 75), **PADDED),
    Case("focalnet_huge_fl3", (75, 61), peers=("timm",)),
    Case("focalnet_huge_fl4"),
]
CASES = [*DEFAULT, *(pytest.param(case, marks=pytest.mark.extended) for case in EXTENDED)]


def loaded_peer(peers, kind, model, params, dtype="float64"):
    """Builds a peer with our parameters, in the precision `dtype`."""
    peer = peers.build_peer(kind, model)
    peers.load_peer(peer.double(), to_torch(params, model, dialect=kind))
    casts = {"float64": peer.double, "float32": peer.float, "bfloat16": peer.bfloat16}
    return casts[dtype]()


def assert_close(name, ours, theirs, tolerance):
    found = difference(name, np.asarray(ours), np.asarray(theirs))
    assert found.relative_error <= tolerance, found


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_nets_and_gradients(case, peers, torch):
    """Compares every layer's output and the gradient to every parameter in float64."""
    model, images = case.model(**FLOAT64), case.images()
    params = random_params(model)
    weights = np.random.default_rng(2).normal(size=(case.batch, 5))

    def loss(params):
        logits, outputs = model.apply({"params": params}, jnp.array(images))
        return (logits * weights).sum(), outputs | {"logits": logits}

    gradients, ours = jax.jit(jax.grad(loss, has_aux=True))(params)

    for kind in case.peers:
        peer = loaded_peer(peers, kind, model, params)
        theirs = peers.run_peer(peer, kind, images)
        for name, value in theirs.items():
            assert_close(name, ours[name], value.detach(), TIGHT)
        (theirs["logits"] * torch.tensor(weights)).sum().backward()
        given = to_torch(gradients, model, dialect=kind)
        expected = {name: p.grad.numpy() for name, p in peer.named_parameters()}
        assert given.keys() == expected.keys()
        for name, gradient in expected.items():
            assert_close(f"{kind} {name}", given[name], gradient, TIGHT)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_nets_in_single_and_half_precision(case, peers, torch):
    """float32 has rounding errors only; bfloat16 is as near to float64 as torch's."""
    images = np.float32(case.images())
    params = random_params(case.model(), "float32")
    exact = {}
    for kind in case.peers:
        peer = loaded_peer(peers, kind, case.model(), params)
        with torch.no_grad():
            exact[kind] = peers.run_peer(peer, kind, np.float64(images))["logits"]
    for dtype in ("float32", "bfloat16"):
        model = case.model(dtype=dtype)
        logits = jax.jit(lambda p, x, m=model: m.apply({"params": p}, x)[0])(
            params, images
        )
        for kind in case.peers:
            ours = difference("logits", np.float64(logits), exact[kind].numpy())
            peer = loaded_peer(peers, kind, model, params, dtype)
            with torch.no_grad():
                logits_there = peers.run_peer(peer, kind, images)["logits"]
            theirs = difference(
                "logits", logits_there.double().numpy(), exact[kind].numpy()
            )
            if dtype == "float32":
                assert ours.relative_error <= SINGLE
            else:
                # Both round at every layer. A single error is partly chance and can
                # differ by a factor of a few.
                assert ours.relative_error <= 3 * theirs.relative_error + 2**-8


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name",
    ["focalnet_huge_fl4", pytest.param("focalnet_tiny_lrf", marks=pytest.mark.extended)],
)
def test_operator_block_and_stage(name, peers, torch):
    """Compares each alone on the same input, with the gradient to the input."""
    model = Case(name, stages=2).model(**FLOAT64, normalize_modulator=True, depths=(2, 1))
    params = random_params(model)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 9, 7, 8))
    encoder = model.encoder
    modulation = FocalModulation(
        focal_level=encoder.focal_levels[0],
        focal_window=encoder.focal_windows[0],
        normalize_modulator=True,
        use_postln_in_modulation=encoder.use_postln_in_modulation,
        **FLOAT64,
    )

    def operator(params, x):
        params = params["layers_0"]["blocks_0"]["modulation"]
        return modulation.apply({"params": params}, x, train=False)[0]

    def block(params, x):
        net = encoder.bind({"params": params})
        return net.layers[0].blocks[0](x, train=False)[0]

    def stage(params, x):
        return encoder.bind({"params": params}).layers[0](x, train=False)[0]

    pulled = rng.normal(size=x.shape)
    ours = []
    for function in (operator, block, stage):

        @jax.jit
        def run(params, x, function=function):
            value, pull = jax.vjp(lambda x: function(params, x), x)
            return value, pull(pulled)[0]

        ours.append(run(params, x))

    for kind in ("timm", "transformers"):
        peer = loaded_peer(peers, kind, model, params)
        for (value, gradient), function in zip(ours, first_stage(peer, kind)):
            variable = torch.tensor(x, requires_grad=True)
            expected = function(variable)
            expected.backward(torch.tensor(pulled))
            assert_close(kind, value, expected.detach(), TIGHT)
            assert_close(f"{kind}'s gradient", gradient, variable.grad, TIGHT)


def first_stage(peer, kind):
    """Yields a peer's first operator, block and stage as functions of `[b, h, w, c]`."""
    if kind == "timm":
        stage = peer.layers[0]
        for module in (stage.blocks[0].modulation, stage.blocks[0], stage):
            yield lambda x, f=module: f(x.movedim(-1, 1)).movedim(1, -1)
        return
    stage = peer.focalnet.encoder.stages[0]
    yield stage.layers[0].modulation
    yield lambda x: stage.layers[0](x.flatten(1, 2), x.shape[1:3]).view(x.shape)
    # A stage returns its map after the downsampling, then its map before it.
    yield lambda x: stage(x.flatten(1, 2), x.shape[1:3])[1].view(x.shape)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("warmup_prefix", [False, True])
def test_schedule_equals_timms_at_every_step(warmup_prefix, torch):
    from timm.scheduler import CosineLRScheduler

    steps, warmup, peak, start, final = 1000, 130, 1e-3, 1e-6, 1e-5
    schedule = warmup_cosine(
        peak=peak,
        start=start,
        final=final,
        warmup_steps=warmup,
        total_steps=steps,
        warmup_prefix=warmup_prefix,
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    # timm counts only the steps of the cosine; with the prefix, the warmup is extra.
    reference = CosineLRScheduler(
        optimizer,
        t_initial=steps - warmup if warmup_prefix else steps,
        lr_min=final,
        warmup_t=warmup,
        warmup_lr_init=start,
        warmup_prefix=warmup_prefix,
        t_in_epochs=False,
    )
    given = np.asarray(schedule(jnp.arange(steps + 50)))
    for step, rate in enumerate(given):
        reference.step_update(step)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "kind", ["timm", pytest.param("transformers", marks=pytest.mark.extended)]
)
def test_twenty_steps_of_training(kind, peers, torch):
    """Compares the losses and the final weights, with the same batches and AdamW.

    Adam divides each gradient by its own size. So the rounding error of a gradient that
    should be zero becomes 1e-16 / eps = 1e-8 of a step. torch clips by the norm + 1e-6
    and optax by the norm, which changes other small gradients as much. Over 20 steps,
    relative differences of the losses below 1e-6 were seen, and 1e-5 is the bound here.
    """
    model = Case("focalnet_huge_fl4", stages=2).model(**FLOAT64)
    start = random_params(model)
    rng = np.random.default_rng(5)
    batches = [
        {
            "image": rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
            "label": rng.integers(0, 5, 4),
        }
        for _ in range(4)
    ] * 5
    pixels = dict(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    config = default_config()
    config.clip_norm = 1.0
    schedule = warmup_cosine(
        peak=1e-2, start=1e-4, final=1e-4, warmup_steps=5, total_steps=20
    )
    optimizer = make_optimizer(config, schedule, depth_of=model.encoder.depth_of)
    params = jax.tree.map(jnp.array, start)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    task = classification(model, label_smoothing=0.1, **pixels)
    step = jax.jit(make_train_step(task, optimizer, seed=0))
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert float(metrics["gradient_norm"]) > 1  # So it was clipped.

    peer = loaded_peer(peers, kind, model, start).train()
    reference = torch.optim.AdamW(
        [
            {
                "params": [p for p in peer.parameters() if decays(p) is decayed],
                "weight_decay": 0.05 if decayed else 0.0,
            }
            for decayed in (True, False)
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    expected = []
    for index, batch in enumerate(batches):
        for group in reference.param_groups:
            group["lr"] = float(schedule(index))
        images = np.array(normalize(jnp.array(batch["image"]), **pixels), "float64")
        logits = peers.run_peer(peer, kind, images)["logits"]
        loss = torch.nn.functional.cross_entropy(
            logits, torch.tensor(batch["label"]), label_smoothing=0.1
        )
        reference.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        reference.step()
        expected.append(loss.item())

    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert losses[-1] < losses[0]
    given = to_torch(state.params, model, dialect=kind)
    for name, tensor in peer.state_dict().items():
        assert_close(name, given[name], tensor, 1e-5)


def decays(parameter):
    """Whether the recipe decays the parameter, which holds for matrices and kernels."""
    return parameter.ndim > 1
