"""Times the implementations of the depthwise convolution side by side on this machine.

    python benchmarks/depthwise_conv.py [--rounds=9] [--cases=images]

The maps and kernels are those of FocalNet-T at 224 pixels (`images`), or large kernels
over one, two and three spatial axes (`large`). Timed are the forward pass, and the
forward pass with the gradients of input and kernel. All contenders take turns in every
round. The program prints the median of each contender over the rounds, and its speed
relative to that of `lax`. `autodiff` is `shifted` without a rule of its own for
differentiation. It has no part in large kernels, whose sums take minutes to compile.
PyTorch takes part if it is installed.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.ops.depthwise_conv import CONVOLUTIONS, depthwise_conv

# The shape of the map, `[batch, *spatial, channels]`, and the size of the kernel.
CASES = {
    "images": [
        ((8, 56, 56, 96), (3, 3)),
        ((8, 56, 56, 96), (5, 5)),
        ((8, 28, 28, 192), (5, 5)),
        ((8, 14, 14, 384), (5, 5)),
        ((8, 7, 7, 768), (7, 7)),
    ],
    "large": [
        ((4, 256, 128), (511,)),
        ((4, 28, 28, 96), (9, 9)),
        ((4, 28, 28, 96), (31, 31)),
        ((1, 8, 28, 28, 64), (5, 5, 5)),
        ((1, 8, 28, 28, 64), (7, 7, 7)),
    ],
}


def autodiff(x, kernel):
    """The shifted sum, differentiated by JAX."""
    size, spatial = kernel.shape[:-2], x.shape[1:-1]
    padded = jnp.pad(x, [(0, 0), *((k // 2, k // 2) for k in size), (0, 0)])
    total = 0
    for tap in np.ndindex(*size):
        window = tuple(slice(t, t + length) for t, length in zip(tap, spatial))
        total += padded[:, *window] * kernel[(*tap, 0)]
    return total


def jax_contenders(x, kernel):
    """Functions without arguments by name: forward, and forward with gradients."""
    functions = {"autodiff": autodiff} if kernel[..., 0, 0].size <= 64 else {}
    for name in CONVOLUTIONS:
        functions[name] = functools.partial(depthwise_conv, implementation=name)
    forward, backward = {}, {}
    for name, function in functions.items():

        def gradients(x, kernel, function=function):
            y, pull_back = jax.vjp(function, x, kernel)
            return pull_back(y)

        forward[name] = caller(jax.jit(function), x, kernel)
        backward[name] = caller(jax.jit(gradients), x, kernel)
    return forward, backward


def caller(function, *arguments):
    return lambda: jax.block_until_ready(function(*arguments))


def torch_contenders(x, kernel):
    """The same in PyTorch, with channels last in memory; empty if it is not installed."""
    try:
        import torch
    except ImportError:
        return {}, {}
    channels = x.shape[-1]
    functional = torch.nn.functional
    conv = [functional.conv1d, functional.conv2d, functional.conv3d][x.ndim - 3]
    image = torch.tensor(np.asarray(x)).movedim(-1, 1)
    weight = torch.tensor(np.asarray(kernel)).movedim((-1, -2), (0, 1)).contiguous()

    def convolve(image, weight):
        return conv(image, weight, padding="same", groups=channels)

    def forward():
        with torch.no_grad():
            convolve(image, weight)

    def backward():
        image.requires_grad_(), weight.requires_grad_()
        y = convolve(image, weight)
        torch.autograd.grad(y, (image, weight), y.detach())

    return {"torch": forward}, {"torch": backward}


def medians(contenders, rounds):
    """The median milliseconds of each contender, after a first round that warms up."""
    times = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(t[1:]) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cases", choices=CASES, default="images")
    args = parser.parse_args()
    rounds = args.rounds
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {rounds} rounds")
    print("milliseconds (speed relative to lax)")
    for shape, size in CASES[args.cases]:
        x = jax.random.normal(jax.random.key(0), shape)
        kernel = jax.random.normal(jax.random.key(1), (*size, 1, shape[-1]))
        pairs = zip(jax_contenders(x, kernel), torch_contenders(x, kernel))
        for label, (ours, theirs) in zip(("forward", "with gradients"), pairs):
            result = medians(ours | theirs, rounds)
            cells = [
                f"{name} {value:.1f} ({result['lax'] / value:.1f}x)"
                for name, value in result.items()
            ]
            title = f"{list(shape)}, {'x'.join(map(str, size))}, {label}"
            print(f"{title}: {', '.join(cells)}")


if __name__ == "__main__":
    main()
