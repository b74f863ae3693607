"""Images a second on a CPU, beside timm, eager and compiled, side by side in one run.

    pip install '.[test]'
    python benchmarks/cpu.py [--rounds=9] [--json=FILE]
    python benchmarks/cpu.py --before=DIR         # a checkout of an older version, too
    python benchmarks/cpu.py --table [--json=FILE]    # what has been measured so far

Four tasks, each with FocalNet-T (SRF) at 224 pixels and batches of 8 by default: the
forward pass, and the forward and backward pass with all gradients, both in float32 and in
bfloat16. For the forward pass in bfloat16 the weights are bfloat16. With gradients they
are float32, and the computation is in bfloat16: our models by `dtype`, timm's by
`torch.autocast`.

Each contender is a process of its own, which waits while others have their turn. All take
turns in every round, in an order that changes. Printed are medians over the rounds of
images a second, and of our ratios within rounds to others, with the least and greatest.
All of them keep freed memory, as our training program does, see
`focalnet_jax/train/freed_memory.py`: timm's gain by that, too.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys
import time

TASKS = [
    f"{kind} {dtype}"
    for kind in ("forward", "gradient")
    for dtype in ("float32", "bfloat16")
]
RIVALS = ("timm", "timm compiled")
NEEDED = ("torch", "timm")
SIZE = 224
RESULTS = pathlib.Path(__file__).parent / "results/cpu.json"
# glibc then takes memory from the system once, and gives none of it back.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_ARENA_MAX": "1",
}


def ours(task, model, batch_size):
    """A function that computes the task once."""
    import jax
    import jax.numpy as jnp

    import focalnet_jax

    kind, dtype = task.split()
    net = focalnet_jax.create_model(model, dtype=dtype)
    images = jax.random.normal(jax.random.key(0), (batch_size, SIZE, SIZE, 3))
    labels = jnp.arange(batch_size)
    params = jax.jit(net.init)(jax.random.key(1), images)["params"]

    def logits(params, images):
        return net.apply({"params": params}, images)[0]

    def loss(params, images):
        log_p = jax.nn.log_softmax(logits(params, images).astype(jnp.float32))
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    if kind == "forward":
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        compute = jax.jit(logits)
    else:
        compute = jax.jit(jax.value_and_grad(loss))
    return lambda: jax.block_until_ready(compute(params, images))


def timms(task, model, batch_size, *, compiled):
    import timm
    import torch

    kind, dtype = task.split()
    dtype = getattr(torch, dtype)
    net = timm.create_model(model)
    net = net.to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, SIZE, SIZE)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size)
    run = torch.compile(net) if compiled else net

    if kind == "forward":
        net.eval().to(dtype)
        images = images.to(dtype)

        def compute():
            with torch.inference_mode():
                run(images)

        return compute

    def compute():
        net.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = run(images)
        torch.nn.functional.cross_entropy(logits.float(), labels).backward()

    return compute


CONTENDERS = {
    "ours": ours,
    "before": ours,  # from another checkout
    "timm": lambda *task: timms(*task, compiled=False),
    "timm compiled": lambda *task: timms(*task, compiled=True),
}


def contend(name, task, model, batch_size):
    """A contender's process: says how long each turn took."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    compute = CONTENDERS[name](task, model, batch_size)
    for _ in range(3):
        compute()
    print("ready", file=results, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        compute()
        print(time.perf_counter() - start, file=results, flush=True)


class Contender:
    """A process that takes turns."""

    def __init__(self, name, task, args):
        package = args.before if name == "before" else pathlib.Path(__file__).parents[1]
        self._process = subprocess.Popen(
            [
                *[sys.executable, __file__, "--contender", name, task],
                *[f"--model={args.model}", f"--batch-size={args.batch_size}"],
            ],
            env=os.environ
            | KEEP_FREED_MEMORY
            | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(package)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self._read()  # it has compiled and is ready

    def _read(self):
        if not (line := self._process.stdout.readline()):
            raise SystemExit("error: a contender has ended: try again with VERBOSE=1")
        return line

    def turn(self):
        print(file=self._process.stdin, flush=True)
        return float(self._read())

    def end(self):
        self._process.kill()
        self._process.wait()


def compare(task, args):
    """The seconds of each round, by contender."""
    names = [name for name in CONTENDERS if name in (args.contenders or CONTENDERS)]
    if "before" in names and not args.before:
        names.remove("before")
    if "timm compiled" in names and not has_compiler():
        print("no C++ compiler is here for torch.compile", file=sys.stderr)
        names.remove("timm compiled")
    contenders = {}
    seconds = {name: [] for name in names}
    try:
        for name in names:
            print(f"{task}: {name} compiles", file=sys.stderr)
            contenders[name] = Contender(name, task, args)
        for number in range(args.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                seconds[name].append(contenders[name].turn())
            print(f"{task}: round {number + 1}/{args.rounds}", file=sys.stderr)
    finally:
        for contender in contenders.values():
            contender.end()
    return seconds


def has_compiler():
    """Whether torch.compile finds what it needs."""
    compilers = (os.environ.get("CXX"), "g++", "clang++")
    return any(shutil.which(compiler) for compiler in compilers if compiler)


def figures(seconds, batch_size):
    """Of each contender, and of its ratios to rivals: median, least and greatest."""
    rivals = [name for name in ("before", *RIVALS) if name in seconds]
    table = {}
    for name, times in seconds.items():
        table[name] = {"images_per_second": _spread(batch_size / t for t in times)}
        for rival in rivals:
            ratios = (theirs / own for own, theirs in zip(times, seconds[rival]))
            table[name][f"x {rival}"] = _spread(ratios)
    return table


def _spread(values):
    values = sorted(values)
    return [round(v, 3) for v in (statistics.median(values), values[0], values[-1])]


def markdown(results):
    """A table for each run, with a line for each task.

    It has our images a second, and theirs, with the ratio of ours to theirs.
    """
    lines = []
    for run in results:
        about = run["about"]
        names = [name for name in CONTENDERS if name in next(iter(run["tasks"].values()))]
        lines += [
            f"jax {about['jax']}, torch {about['torch']}, timm {about['timm']}, Python "
            f"{about['python']}, {about['cores']} cores of {about['processor']}; "
            f"{about['model']}, batches of {about['batch_size']}, images a second:",
            "",
            f"| | {' | '.join(names)} |",
            "|---" * (len(names) + 1) + "|",
        ]
        for task, table in run["tasks"].items():
            cells = [_cell(name, table) for name in names]
            lines.append(f"| {task} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(name, table):
    middle = table[name]["images_per_second"][0]
    if name == "ours":
        return f"{middle:.1f}"
    ratio, low, high = table["ours"][f"x {name}"]
    return f"{middle:.1f}: {ratio:.2f} ({low:.2f} to {high:.2f})"


def processor():
    """The name of the processor, and what it has for matrix products."""
    path = pathlib.Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    entries = [line.partition(":") for line in path.read_text().splitlines()]
    lines = {key.strip(): value.strip() for key, _, value in entries}
    flags = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & {*lines["flags"].split()}
    return f"{lines.get('model name', platform.machine())} ({', '.join(sorted(flags))})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="focalnet_tiny_srf")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--before", type=pathlib.Path, help="an older checkout")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the results")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="print it, run nothing")
    args = parser.parse_args()
    if args.table:
        print(markdown(json.loads((args.json or RESULTS).read_text())))
        return
    if args.contender:
        contend(*args.contender, args.model, args.batch_size)
        return
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        needed = " and ".join(missing)
        raise SystemExit(f"error: this needs {needed}: pip install '.[test]'")
    run = {"about": about(args), "tasks": {}}
    for task in args.tasks:
        run["tasks"][task] = figures(compare(task, args), args.batch_size)
    print(markdown([run]))
    if args.json:
        add_run(args.json, run)


def about(args):
    """What the figures of a run depend on."""
    versions = ("jax", "jaxlib", "flax", "torch", "timm")
    command = f"python benchmarks/cpu.py --rounds={args.rounds}"
    found = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in versions},
        "model": args.model,
        "batch_size": args.batch_size,
        "rounds": args.rounds,
    }
    if args.contenders:
        command += f" --contenders {shlex.join(args.contenders)}"
    if args.before:
        command += " --before=DIR"
        git = ["git", "-C", str(args.before), "rev-parse", "--short", "HEAD"]
        found["before"] = subprocess.run(
            git, capture_output=True, text=True, check=True
        ).stdout.strip()
    return found | {"command": command}


def add_run(path, run):
    """Writes a run into a file of several.

    Other tasks of an equal run stay; a run with the same version of jax is replaced.
    """
    runs = json.loads(path.read_text()) if path.exists() else []
    for other in runs:
        if other["about"] == run["about"]:
            run["tasks"] = other["tasks"] | run["tasks"]
    version = run["about"]["jax"]
    runs = [other for other in runs if other["about"]["jax"] != version] + [run]
    path.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
