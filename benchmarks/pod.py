"""The largest batch a chip that fits, and its estimated speed, for models on a TPU slice.

    pip install libtpu
    python benchmarks/pod.py                          # hours on two cores
    python benchmarks/pod.py --models base_lrf huge_fl4 --remat full
    python benchmarks/pod.py --models base_lrf --slice v6e:16x16
    python benchmarks/pod.py --table                  # what has been compiled so far

Compiles what `main.py --compile_for` compiles, for powers of two: from a first guess up
as long as it fits, or down until it does. Each compile is a line of
`benchmarks/results/SLICE.jsonl` when it is done, so the same command goes on where it was
stopped; `--again` begins anew. A second table compares the slices that one model has been
compiled for.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config
from focalnet_jax.train.aot.compile_for import compile_for
from focalnet_jax.train.aot.slices import chip_of_slice
from focalnet_jax.train.recipes import load_recipe


@dataclasses.dataclass(frozen=True)
class Job:
    """A model on every chip of a slice; `guess` is where its search starts."""

    recipe: str
    guess: int  # images a chip of v5e, without recomputation
    fsdp: int = 1
    scan: bool | None = None  # None for what the recipe has


JOBS = {
    "tiny_lrf": Job("base:tiny_lrf", guess=256),
    "small_lrf": Job("base:small_lrf", guess=128),
    "base_lrf": Job("base:base_lrf", guess=128),
    "large_fl4": Job("finetune:large_fl4,384", guess=16, fsdp=16),
    "xlarge_fl4": Job("finetune:xlarge_fl4,384", guess=16, fsdp=16),
    "huge_fl4": Job("finetune:huge_fl4,384", guess=8, fsdp=16),
}
MORE_WITH_REMAT = {"none": 1, "dots": 2, "full": 4}
SLICES = ("v5e:16x16", "v6e:16x16", "v5p:8x8x4")  # of 256 chips each
COMPARED = "base_lrf"


def has_scan(name):
    """Whether a job's blocks are one program that runs more than once."""
    job = JOBS[name]
    return load_recipe(job.recipe).model.scan if job.scan is None else job.scan


def compile_one(name, remat, batch_per_chip, scan, slice_name):
    """In a process of its own, which gives its memory back."""
    job = JOBS[name]
    config = load_recipe(job.recipe)
    config.update(
        batch_size=batch_per_chip * chips_of(slice_name),
        mesh=dict(fsdp=job.fsdp),
        model=dict(scan=scan, remat=remat),
    )
    report = compile_for(*check_config(config), slice_name)
    result = dataclasses.asdict(report)
    result |= dict(model=name, remat=remat, batch_per_chip=batch_per_chip, scan=scan)
    result["image_size"] = config.data.image_size
    if report.step_seconds:
        result["images_per_second_and_chip"] = report.examples_per_second_and_chip
        result["model_flops_utilization"] = report.model_flops_utilization
    for package in ("jax", "libtpu"):
        result[package] = importlib.metadata.version(package)
    return result


def chips_of(slice_name):
    return math.prod(int(size) for size in slice_name.partition(":")[2].split("x"))


def in_own_process(function, *args):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def results_path(slice_name):
    return (
        pathlib.Path(__file__).parent
        / "results"
        / f"{slice_name.replace(':', '_')}.jsonl"
    )


def read_results(path):
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]  # without a line that a kill left incomplete
    if whole != text:
        path.write_text(whole)
    results = [json.loads(line) for line in whole.splitlines()]
    return {
        # All had `scan` before it was written down.
        (r["model"], r["remat"], r["batch_per_chip"], r.setdefault("scan", True)): r
        for r in results
    }


def search(name, remat, slice_name, results):
    """Compiles until the largest power of two that fits is known, and the next fails."""
    memory = chip_of_slice(slice_name).memory / chip_of_slice("v5e:1x1").memory
    more = 2 ** int(math.log2(memory))
    batch = JOBS[name].guess * MORE_WITH_REMAT[remat] * more
    scan = has_scan(name)
    seen = {}
    while batch and batch not in seen:
        key = (name, remat, batch, scan)
        if key not in results:
            print(f"{name}, remat={remat}, {batch} images a chip ...", flush=True)
            result = in_own_process(compile_one, *key, slice_name)
            results[key] = result
            path = results_path(slice_name)
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"  {verdict(result)}; compiled in {result['compile_seconds']:.0f} s")
        seen[batch] = results[key]["fits"]
        batch = batch * 2 if seen[batch] else batch // 2


def verdict(result):
    if not result["fits"]:
        return f"doesn't fit: {result['problem']}"
    if not result["step_seconds"]:
        return "fits; no estimate"
    if result["uncounted_calls"]:
        return f"fits; {result['uncounted_calls']} kernels are not counted"
    if result["open_loops"]:
        return f"fits; {result['open_loops']} loops in kernels count once"
    return (
        f"{1e3 * result['step_seconds']:.0f} ms, "
        f"{result['images_per_second_and_chip']:.0f} images/s/chip, "
        f"{result['model_flops_utilization']:.1%} MFU"
    )


def largest(results):
    """Of what fits the largest batch, by model, recomputation and `scan`."""
    best = {}
    for (name, remat, _, scan), result in sorted(results.items(), key=lambda r: r[0][2]):
        if result["fits"]:
            best[name, remat, scan] = result
    return best


def memory_of(result):
    parts = ("parameter_bytes", "optimizer_bytes", "activation_bytes")
    return sum(result[part] for part in parts) / 1e9


def cells(result):
    """The time of a step, images a second and MFU; empty where a part isn't known."""
    not_counted = result.get("uncounted_calls") or result.get("open_loops")
    if not result["step_seconds"] or not_counted:
        return ["", "", ""]
    return [
        f"{1e3 * result['step_seconds']:,.0f} ms",
        f"{result['images_per_second_and_chip']:,.0f}",
        f"{result['model_flops_utilization']:.1%}",
    ]


def kernels_of(result):
    """`40, 12 ms`; results from before kernels were counted had none."""
    if not result.get("kernel_calls"):
        return "none"
    return f"{result['kernel_calls']}, {1e3 * result['kernel_seconds']:.0f} ms"


def print_table(results):
    names = ["model", "pixels", "remat", "scan", "mesh", "images a chip"]
    names += ["memory of a chip", "step", "images/s/chip", "MFU", "kernels", "compile"]
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    best = largest(results)
    for name in JOBS:
        for (own, remat, scan), result in best.items():
            if own != name:
                continue
            row = [name, str(result["image_size"]), remat, "yes" if scan else "no"]
            row.append(" x ".join(f"{a} {n}" for a, n in result["mesh"].items() if n > 1))
            row += [str(result["batch_per_chip"]), f"{memory_of(result):.1f} GB"]
            row += [*cells(result), kernels_of(result)]
            row.append(f"{result['compile_seconds']:.0f} s")
            print(f"| {' | '.join(row)} |")


def print_slices():
    """One model on slices of other chips, a column for each of those compiled for."""
    columns = {}
    for slice_name in SLICES:
        for (name, remat, scan), result in largest(
            read_results(results_path(slice_name))
        ).items():
            if name == COMPARED:
                head = f"{slice_name}, remat={remat}{', scan' if scan else ''}"
                columns[head] = [
                    str(result["batch_per_chip"]),
                    f"{memory_of(result):.1f} GB",
                    *cells(result),
                    kernels_of(result),
                ]
    print(f"\n| {COMPARED} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    names = ("images a chip", "memory of a chip", "step", "images/s/chip", "MFU")
    for row in zip((*names, "kernels"), *columns.values()):
        print(f"| {' | '.join(row)} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slice", default="v5e:16x16", dest="slice_name")
    parser.add_argument("--models", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--remat", nargs="+", choices=MORE_WITH_REMAT, default=["none"])
    parser.add_argument("--table", action="store_true", help="print it, compile nothing")
    parser.add_argument("--again", action="store_true", help="forget what was compiled")
    args = parser.parse_args()
    path = results_path(args.slice_name)
    if args.again:
        path.unlink(missing_ok=True)
    results = read_results(path)
    if not args.table:
        os.environ["JAX_PLATFORMS"] = "cpu"
        for name in args.models:
            for remat in args.remat:
                search(name, remat, args.slice_name, results)
    print_table(results)
    print_slices()


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        raise SystemExit(f"error: {error}") from None
