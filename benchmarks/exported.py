"""An exported model in onnxruntime on a CPU, beside JAX, timm, and timm's own export.

    pip install '.[export,test]' onnxruntime
    python benchmarks/exported.py [--rounds=9] [--json=FILE]
    python benchmarks/exported.py --table     # what has been measured so far

FocalNet-T (SRF) at 224 pixels in float32, forward. Both graphs have an open batch, and
each runs in onnxruntime with its default options. timm's is what `timm.utils.onnx_export`
writes of the model that `timm.create_model(..., exportable=True)` makes.

Each contender is a process of its own, and all take turns in every round, in an order
that changes. Printed are medians over the rounds of images a second, and of the ratios of
our graph to the others within rounds, with the least and greatest.
"""

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time

import recorded
import turns

MODEL = "focalnet_tiny_srf"
SIZE = 224
TASKS = ("batch 1", "batch 8")
OURS, COMPILED = "our graph", "our model, jit"
TIMMS_GRAPH, TIMM = "timm's graph", "timm, eager"
CONTENDERS = (OURS, COMPILED, TIMMS_GRAPH, TIMM)
VERSIONS = ("jax", "onnx", "onnxruntime", "torch", "timm")
NEEDED = ("onnx", "onnxruntime", "torch", "timm")
RESULTS = pathlib.Path(__file__).parent / "results/exported.json"


def batch_size_of(task):
    return int(task.split()[1])


# --- The contenders, each in a process of its own ------------------------------


def our_net():
    """Our model and its parameters, which graph and model share."""
    import jax

    import focalnet_jax

    net = focalnet_jax.create_model(MODEL)
    example = jax.numpy.zeros((1, SIZE, SIZE, 3))
    return net, jax.jit(net.init)(jax.random.key(0), example)["params"]


def our_graph(directory):
    from focalnet_jax.export import export_onnx

    return in_onnxruntime(export_onnx(*our_net()).SerializeToString())


def timms_graph(directory):
    import timm
    import torch
    from timm.utils.onnx import onnx_export

    net = timm.create_model(MODEL, exportable=True)
    path = os.path.join(directory, "timm.onnx")
    with torch.inference_mode():
        onnx_export(net, path, batch_size=2, input_size=(3, SIZE, SIZE))
    return in_onnxruntime(pathlib.Path(path).read_bytes())


def in_onnxruntime(data):
    """A function from a task to one that computes it, and what the graph consists of."""
    import numpy as np
    import onnx
    import onnxruntime

    graph = onnx.load_from_string(data).graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    [images] = session.get_inputs()

    def make(task):
        shape = (batch_size_of(task), 3, SIZE, SIZE)
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        return lambda: session.run(None, {images.name: x})

    facts = {"nodes": sum(kinds.values()), "megabytes": round(len(data) / 1e6, 1)}
    return make, facts


def our_model(directory):
    import jax

    net, params = our_net()
    compute = jax.jit(lambda params, x: net.apply({"params": params}, x)[0])

    def make(task):
        x = jax.random.normal(jax.random.key(1), (batch_size_of(task), SIZE, SIZE, 3))
        return lambda: jax.block_until_ready(compute(params, x))

    return make, {}


def timms_model(directory):
    import timm
    import torch

    net = timm.create_model(MODEL).eval().to(memory_format=torch.channels_last)

    def make(task):
        x = torch.randn(batch_size_of(task), 3, SIZE, SIZE)
        x = x.to(memory_format=torch.channels_last)

        def compute():
            with torch.inference_mode():
                net(x)

        return compute

    return make, {}


MAKERS = dict(zip(CONTENDERS, (our_graph, our_model, timms_graph, timms_model)))


def contend(name):
    """A contender's process."""
    with tempfile.TemporaryDirectory() as directory:
        made = []

        def prepare(task):
            if not made:
                made.append(MAKERS[name](directory))
            make, facts = made[0]
            compute = make(task)
            for _ in range(3):
                compute()

            def turn():
                start = time.perf_counter()
                compute()
                return time.perf_counter() - start

            return turn, facts

        turns.serve(prepare)


# --- The program that asks them -------------------------------------------------


def measure(args):
    """The results of all tasks."""
    root = str(pathlib.Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    contenders = [
        turns.Contender(
            name,
            [sys.executable, __file__, "--contender", name],
            environment=environment,
            lane="all",
        )
        for name in CONTENDERS
    ]
    tasks = {}
    try:
        for task in TASKS:
            print(f"{task}: {args.rounds} rounds", file=sys.stderr)
            results, _ = turns.compare(contenders, task, rounds=args.rounds)
            for name, result in results.items():
                if "error" in result:
                    raise SystemExit(f"error: {name}: {result['error']}")
            tasks[task] = {name: figures(task, results, name) for name in results}
    finally:
        for contender in contenders:
            contender.end()
    return {"about": about(args), "tasks": tasks}


def figures(task, results, name):
    """What is known of a contender: its speed, and ours over it."""
    seconds = results[name]["seconds"]
    ratio = turns.ratios(results[OURS]["seconds"], seconds)
    facts = {k: v for k, v in results[name].items() if k != "seconds"}
    return facts | {
        "images_per_second": round(batch_size_of(task) / statistics.median(seconds), 2),
        "ours_over_it": [round(value, 3) for value in ratio],
    }


def about(args):
    return {
        "command": recorded.command("benchmarks/exported.py"),
        "model": MODEL,
        "rounds": args.rounds,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in VERSIONS},
    }


def markdown(run):
    about = run["about"]
    versions = ", ".join(f"{name} {about[name]}" for name in VERSIONS)
    lines = [
        f"{versions}, Python {about['python']}, {about['cores']} cores; "
        f"{about['model']}, images a second. After the colon stands the speed of "
        f"{OURS} over that of the row, with the least and greatest of the rounds:",
        "",
        "| | nodes | MB | " + " | ".join(run["tasks"]) + " |",
        "|---" * (3 + len(run["tasks"])) + "|",
    ]
    for name in CONTENDERS:
        results = [results[name] for results in run["tasks"].values()]
        cells = [name, results[0].get("nodes", ""), results[0].get("megabytes", "")]
        for result in results:
            middle, low, high = result["ours_over_it"]
            speed = f"{result['images_per_second']:.1f}"
            ratio = f": {middle:.2f} ({low:.2f} to {high:.2f})"
            cells.append(speed if name == OURS else speed + ratio)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=pathlib.Path, help="where to write the results")
    parser.add_argument("--table", action="store_true", help="print it, run nothing")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.table:
        print(markdown(recorded.read(args.json or RESULTS)))
    elif args.contender:
        contend(args.contender)
    elif missing := [n for n in NEEDED if importlib.util.find_spec(n) is None]:
        raise SystemExit(
            f"error: this needs {' and '.join(missing)}: pip install '.[export,test]' "
            "onnxruntime"
        )
    else:
        run = measure(args)
        print(markdown(run))
        if args.json:
            args.json.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
