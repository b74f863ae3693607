"""The contenders of `benchmarks/gpu.py`: what each computes, in a process of its own.

    python benchmarks/gpu_contenders.py SPECIFICATION

The specification is an object in JSON, which `gpu.py` writes. Nothing here is imported
before a contender needs it: not JAX by those of PyTorch but for building their nets, and
not PyTorch by ours.
"""

import functools
import json
import math
import sys
import time

import turns

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05
CLASSES = 1000
FIRST_LOSSES = 3


def timed(run, seconds):
    """A turn of about so many seconds: once without timing, and then many times.

    Args:
      run: computes so many times, and waits for the last one.
    """
    count = 0

    def turn():
        nonlocal count
        if not count:
            start = time.perf_counter()
            run(2)
            once = (time.perf_counter() - start) / 2
            count = min(max(math.ceil(seconds / once), 1), 1000)
        run(1)
        start = time.perf_counter()
        run(count)
        return (time.perf_counter() - start) / count

    return turn


def operator_shapes(spec, stage):
    """The shapes of context, gates and kernels at a stage, counted from 1, NHWC."""
    size = spec["map_size"] // 2 ** (stage - 1)
    channels = spec["embed_dim"] * 2 ** (stage - 1)
    context = (spec["batch_size"], size, size, channels)
    gates = (*context[:-1], len(spec["windows"]) + 1)
    return context, gates, [(window, window, 1, channels) for window in spec["windows"]]


def stage_of(task):
    return int(task.split()[1])


# --- JAX ---------------------------------------------------------------------


class OfJax:
    """The tasks of our models and of our operator, with one of the implementations."""

    def __init__(self, spec):
        self.spec = spec

    def prepare(self, task):
        import jax

        check_platform(self.spec, jax.default_backend())
        start = time.perf_counter()
        run, facts = getattr(self, task.split()[-1])(task)
        if run is None:
            return None, facts
        run(1)
        facts["prepare_seconds"] = time.perf_counter() - start
        facts["implementation"] = self.spec["implementation"]
        return timed(run, self.spec["turn_seconds"]), facts | self._memory()

    def _memory(self):
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        return {"memory_gib": peak / 2**30} if peak else {}

    def _net(self, dtype):
        import jax

        from focalnet_jax import create_model

        spec = self.spec
        size, options = spec["image_size"], spec["options"]
        net = create_model(
            spec["model"],
            num_classes=CLASSES,
            dtype=dtype,
            implementation=spec["implementation"],
            **options,
        )
        images = jax.random.normal(jax.random.key(0), (spec["batch_size"], size, size, 3))
        params = jax.jit(net.init)(jax.random.key(1), images[:1])["params"]
        return net, params, images

    def _loss(self, net, images):
        import jax
        import jax.numpy as jnp
        import optax

        labels = jnp.arange(len(images)) % CLASSES

        def loss(params):
            logits = net.apply({"params": params}, images, train=True)[0]
            logits = logits.astype(jnp.float32)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return each.mean(), logits

        return jax.value_and_grad(loss, has_aux=True)

    def training(self, _):
        import jax
        import optax

        net, params, images = self._net("bfloat16")
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        state = params, optimizer.init(params)

        def step(state, images):
            params, moments = state
            (loss, _), gradients = self._loss(net, images)(params)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

        step = jax.jit(step, donate_argnums=0)

        def run(count):
            nonlocal state
            for _ in range(count):
                state, loss = step(state, images)
            return loss.item()

        return run, {"losses": [run(1) for _ in range(FIRST_LOSSES)]}

    def inference(self, _):
        import jax

        net, params, images = self._net("bfloat16")
        params = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
        images = images.astype("bfloat16")
        compute = jax.jit(lambda params, images: net.apply({"params": params}, images)[0])
        return repeated(compute, params, images), {}

    def agreement(self, _):
        import jax
        import jax.numpy as jnp

        results = {}
        for dtype in ("float32", "bfloat16"):
            net, params, images = self._net(dtype)
            # Products of float32 numbers are else those of TF32 on some cards.
            precision = "highest" if dtype == "float32" else None
            with jax.default_matmul_precision(precision):
                compute = jax.jit(lambda p, i, net=net: self._loss(net, i)(p))
                (loss, logits), gradients = compute(params, images)
            flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradients)])
            results[dtype] = float(loss), logits, flat
        (loss, logits, flat), (low_loss, low_logits, low_flat) = results.values()
        return None, agreement(
            loss,
            low_loss,
            logits=(abs(low_logits - logits).max() / abs(logits).max()).item(),
            gradients=(jnp.linalg.norm(low_flat - flat) / jnp.linalg.norm(flat)).item(),
        )

    def copy(self, _):
        import jax
        import jax.numpy as jnp

        x = jnp.zeros(self.spec["copy_bytes"] // 2, jnp.bfloat16)
        return repeated(jax.jit(jnp.negative), x), {"bytes": 2 * x.nbytes}

    def forward(self, task):
        import jax

        context, gates, kernels, _ = self._operands(task)
        return repeated(jax.jit(self._aggregate()), context, gates, kernels), {}

    def gradient(self, task):
        import jax

        def compute(context, gates, kernels, cotangent):
            y, pull_back = jax.vjp(self._aggregate(), context, gates, kernels)
            return y, pull_back(cotangent)

        return repeated(jax.jit(compute), *self._operands(task)), {}

    def _operands(self, task):
        import jax
        import jax.numpy as jnp

        def normal(shape, scale=1.0):
            key = jax.random.key(math.prod(shape))
            return (scale * jax.random.normal(key, shape)).astype(jnp.bfloat16)

        context, gates, kernels = operator_shapes(self.spec, stage_of(task))
        kernels = [normal(kernel, 1 / kernel[0]) for kernel in kernels]
        return normal(context), normal(gates), kernels, normal(context, 0.5)

    def _aggregate(self):
        from focalnet_jax.ops import aggregate_context

        implementation = self.spec["implementation"]
        if implementation == "shifted + lax":
            return shifted_and_lax
        return lambda *operands: aggregate_context(
            *operands, implementation=implementation
        )


def repeated(function, *arguments):
    """A function that calls another so many times, and waits for the last result."""
    import jax

    def run(count):
        for _ in range(count):
            result = function(*arguments)
        jax.block_until_ready(result)

    return run


def shifted_and_lax(context, gates, kernels):
    """The operator by sums of shifted maps, but for the gradient of the kernel by `lax`.

    On an H200 that gradient takes most of the time of `shifted`, whose loop over rows is
    made for CPUs.
    """
    import jax

    from focalnet_jax.ops import depthwise_conv, gelu

    shifted = functools.partial(depthwise_conv, implementation="shifted")
    lax = functools.partial(depthwise_conv, implementation="lax")

    def pull_back(operands, cotangent):
        x, kernel = operands
        _, of_map = jax.vjp(lambda x: shifted(x, kernel), x)
        _, of_kernel = jax.vjp(lambda kernel: lax(x, kernel), kernel)
        return *of_map(cotangent), *of_kernel(cotangent)

    convolve = jax.custom_vjp(shifted)
    convolve.defvjp(lambda *operands: (shifted(*operands), operands), pull_back)

    total = 0
    for level, kernel in enumerate(kernels):
        context = gelu(convolve(context, kernel))
        total += context * gates[..., level : level + 1]
    mean = context.mean((1, 2), keepdims=True)
    return total + gelu(mean) * gates[..., len(kernels) :]


# --- PyTorch -----------------------------------------------------------------


class OfTorch:
    """The tasks of timm's and transformers' nets, and the operator in PyTorch."""

    def __init__(self, spec):
        import torch

        self.spec = spec
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True
        # Products in float32 are those of float32, as ours.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def prepare(self, task):
        import torch

        check_platform(self.spec, "gpu" if self.device == "cuda" else "cpu")
        torch.manual_seed(0)
        torch.compiler.reset()  # Else other shapes would make kernels for any shape.
        start = time.perf_counter()
        run, facts = getattr(self, task.split()[-1])(task)
        if run is None:
            return None, facts

        def computed(count):
            for _ in range(count):
                run()
            self._wait()

        computed(2)
        facts["prepare_seconds"] = time.perf_counter() - start
        facts |= self._memory()
        self._free()
        turn = timed(computed, self.spec["turn_seconds"])

        def turn_that_frees():
            seconds = turn()
            self._free()
            return seconds

        return turn_that_frees, facts

    def _wait(self):
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def _free(self):
        """Leaves the card's memory to those whose turn is next."""
        import torch

        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _memory(self):
        import torch

        if self.device == "cpu":
            return {}
        return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}

    def _net(self):
        """A net in float32, a function that runs it, and images and labels."""
        import torch

        from focalnet_jax import create_model
        from focalnet_jax.parity.peers import build_peer

        spec = self.spec
        ours = create_model(spec["model"], num_classes=CLASSES, **spec["options"])
        net = build_peer(spec["kind"], ours)
        net = net.to(self.device, memory_format=torch.channels_last)
        shape = (spec["batch_size"], 3, spec["image_size"], spec["image_size"])
        images = torch.randn(shape, device=self.device)
        images = images.to(memory_format=torch.channels_last)
        labels = torch.arange(len(images), device=self.device) % CLASSES
        apply = torch.compile(net, dynamic=False) if spec["compiled"] else net

        def logits(images):
            result = apply(images)
            return getattr(result, "logits", result)

        return net, logits, images, labels

    def _loss(self, logits, images, labels, *, bfloat16=True):
        import torch

        with torch.autocast(self.device, torch.bfloat16, enabled=bfloat16):
            result = logits(images)
        result = result.float()
        return torch.nn.functional.cross_entropy(result, labels), result

    def training(self, _):
        import torch

        net, logits, images, labels = self._net()
        net.train()
        optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            fused=self.device == "cuda",
        )

        def run():
            optimizer.zero_grad(set_to_none=True)
            loss, _ = self._loss(logits, images, labels)
            loss.backward()
            optimizer.step()
            return loss

        return run, {"losses": [run().item() for _ in range(FIRST_LOSSES)]}

    def inference(self, _):
        import torch

        net, logits, images, _ = self._net()
        net.eval().to(torch.bfloat16)
        images = images.to(torch.bfloat16)

        def run():
            with torch.inference_mode():
                logits(images)

        return run, {}

    def agreement(self, _):
        import torch

        net, logits, images, labels = self._net()
        net.train()
        results = []
        for bfloat16 in (False, True):
            net.zero_grad()
            loss, result = self._loss(logits, images, labels, bfloat16=bfloat16)
            loss.backward()
            flat = torch.cat([p.grad.flatten() for p in net.parameters()])
            results.append((loss.item(), result.detach(), flat))
        (loss, high, flat), (low_loss, low, low_flat) = results
        return None, agreement(
            loss,
            low_loss,
            logits=((low - high).abs().max() / high.abs().max()).item(),
            gradients=((low_flat - flat).norm() / flat.norm()).item(),
        )

    def copy(self, _):
        import torch

        count = self.spec["copy_bytes"] // 2
        x = torch.zeros(count, dtype=torch.bfloat16, device=self.device)
        y = torch.empty_like(x)
        return lambda: y.copy_(x), {"bytes": 4 * count}

    def forward(self, task):
        import torch

        context, gates, kernels, _ = self._operands(task)

        def run():
            with torch.no_grad():
                aggregate(context, gates, kernels)

        aggregate = self._aggregate()
        return run, {}

    def gradient(self, task):
        import torch

        context, gates, kernels, cotangent = self._operands(task)
        operands = [context, gates, *kernels]
        for operand in operands:
            operand.requires_grad_()
        aggregate = self._aggregate()

        def run():
            y = aggregate(context, gates, kernels)
            torch.autograd.grad(y, operands, cotangent)

        return run, {}

    def _operands(self, task):
        import torch

        def normal(shape, scale=1.0):
            x = scale * torch.randn(shape, device=self.device)
            return x.to(torch.bfloat16).permute(0, 3, 1, 2)  # NHWC in memory

        context, gates, kernels = operator_shapes(self.spec, stage_of(task))
        kernels = [
            normal((channels, size, size, 1), 1 / size)
            for size, _, _, channels in kernels
        ]
        return normal(context), normal(gates), kernels, normal(context, 0.5)

    def _aggregate(self):
        import torch

        if self.spec["compiled"]:
            return torch.compile(aggregate, dynamic=False)
        return aggregate


def aggregate(context, gates, kernels):
    """The operator in PyTorch, on maps of `[b, c, h, w]`."""
    from torch.nn.functional import conv2d, gelu

    total = 0
    for level, kernel in enumerate(kernels):
        context = conv2d(context, kernel, padding="same", groups=len(kernel))
        context = gelu(context)
        total = total + context * gates[:, level : level + 1]
    mean = context.mean((2, 3), keepdim=True)
    return total + gelu(mean) * gates[:, len(kernels) :]


# --- Both --------------------------------------------------------------------


def agreement(loss, low_loss, *, logits, gradients):
    """What is told of bfloat16 against float32, with the same parameters.

    Args:
      loss, low_loss: in float32 and in bfloat16.
      logits: the greatest difference over the greatest logit.
      gradients: the norm of the difference over the norm, of all gradients together.
    """
    return {
        "float32_loss": loss,
        "bfloat16_loss": low_loss,
        "logits_error": logits,
        "gradients_error": gradients,
    }


def check_platform(spec, platform):
    """Raises RuntimeError if a framework runs elsewhere than it should."""
    if platform != spec["platform"]:
        raise RuntimeError(f"it runs on the {platform}, not on the {spec['platform']}")


def main():
    spec = json.loads(sys.argv[1])
    contender = None

    def prepare(task):
        nonlocal contender
        if contender is None:
            contender = {"jax": OfJax, "torch": OfTorch}[spec["framework"]](spec)
        return contender.prepare(task)

    turns.serve(prepare)


if __name__ == "__main__":
    main()
