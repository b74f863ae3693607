"""Times the implementations of the depthwise convolution side by side on this machine.

    python benchmarks/depthwise_conv.py [--rounds=9]

The maps and kernels are those of FocalNet-T at 224 pixels. Timed are the forward pass,
and the forward pass with the gradients of input and kernel. All contenders take turns in
every round. The program prints the median of each contender over the rounds, and its
speed relative to that of `lax`. `autodiff` is `shifted` without a rule of its own for
differentiation. PyTorch takes part if it is installed.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.ops.depthwise_conv import CONVOLUTIONS, depthwise_conv

# Each is batch, height, width and channels, and the size of the kernel.
CASES = [
    ((8, 56, 56, 96), 3),
    ((8, 56, 56, 96), 5),
    ((8, 28, 28, 192), 5),
    ((8, 14, 14, 384), 5),
    ((8, 7, 7, 768), 7),
]


def autodiff(x, kernel):
    """The shifted sum, differentiated by JAX."""
    size = kernel.shape[0]
    margin = size // 2
    padded = jnp.pad(x, [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    height, width = x.shape[1:3]
    return sum(
        padded[:, row : row + height, column : column + width] * kernel[row, column, 0]
        for row in range(size)
        for column in range(size)
    )


def jax_contenders(x, kernel):
    """Functions without arguments by name: forward, and forward with gradients."""
    functions = {"autodiff": autodiff}
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
    image = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
    weight = torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1).contiguous()
    margin = weight.shape[-1] // 2

    def convolve(image, weight):
        return torch.nn.functional.conv2d(image, weight, padding=margin, groups=channels)

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
    rounds = parser.parse_args().rounds
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, {rounds} rounds")
    print("milliseconds (speed relative to lax)")
    for shape, size in CASES:
        x = jax.random.normal(jax.random.key(0), shape)
        kernel = jax.random.normal(jax.random.key(1), (size, size, 1, shape[-1]))
        pairs = zip(jax_contenders(x, kernel), torch_contenders(x, kernel))
        for label, (ours, theirs) in zip(("forward", "with gradients"), pairs):
            result = medians(ours | theirs, rounds)
            cells = [
                f"{name} {value:.1f} ({result['lax'] / value:.1f}x)"
                for name, value in result.items()
            ]
            print(f"{list(shape)}, {size}x{size}, {label}: " + ", ".join(cells))


if __name__ == "__main__":
    main()
