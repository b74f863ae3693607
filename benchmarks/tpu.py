"""What training and inference would take on a TPU that isn't here, by category.

    pip install libtpu
    python benchmarks/tpu.py [--before=DIR]       # the step and the forward pass of B
    python benchmarks/tpu.py --quick              # fewer blocks, counted more than once
    python benchmarks/tpu.py --growth [--quick]   # of T with resolution and batch
    python benchmarks/tpu.py --table              # Markdown of what has been compiled
    python benchmarks/tpu.py --plot               # docs/growth.png

The real TPU compiler compiles whole programs of `configs/base.py`, and estimates each
operation. All times are such estimates, of operations one after the other; collectives
and copies in the background are free. Pallas kernels count by the bundles that are
scheduled, times their grid. With `--before=DIR`, another checkout of the package, the
programs of both are compiled, each in a process of its own. Other flags are overrides as
for `main.py`, such as `--config.model.scan=True`.

Each compilation is an entry of `benchmarks/results/tpu.json` as soon as it is done.
"""

import argparse
import collections
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

import recorded

from focalnet_jax.chips import model_flops_utilization
from focalnet_jax.errors import SetupError
from focalnet_jax.models import count_params
from focalnet_jax.train import check_config, load_recipe
from focalnet_jax.train.aot import bundles, hlo
from focalnet_jax.train.aot.slices import chip_of_slice
from focalnet_jax.train.overrides import apply_overrides, split_overrides

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "tpu.json"
PLOT = HERE.parent / "docs" / "growth.png"
RECIPE = "base:base_lrf"
GROWTH_RECIPE = "base:tiny_srf"
GROWTH_SIZES = [(side, side) for side in (224, 384, 512, 768, 1024)]
GROWTH_SIZES += [(side // 2, side * 2) for side, _ in GROWTH_SIZES]
GROWTH_BATCHES = (1, 4, 16, 64)
GROWTH_BATCH = 4  # what fits at 1,024 pixels
KINDS = ("step", "forward")

# In the order of the table.
CATEGORIES = (
    "matrix products, forward",
    "matrix products, backward",
    "depthwise convolutions",
    "kernels of the operator, forward",
    "kernels of the operator, backward",
    "kernels of positions, forward",
    "kernels of positions, backward",
    "gates and sums of the operator",
    "norms",
    "embeddings",
    "mixing, erasing, preparing",
    "optimiser",
    "head and loss",
    "copies between layouts",
    "other",
)

# What of the kernels the sums lack.
_NOT_COUNTED = {
    "uncounted_calls": "calls not counted",
    "open_loops": "loops that count once",
}

# Vector operations for each element of a map, as they may be written: of a GELU by tanh,
# of a LayerNorm, and of a gate; with `step`, also of their derivatives. These are round
# numbers for a limit, not measurements.
GELU_OPERATIONS = {"forward": 12, "step": 12 + 20}
NORM_OPERATIONS = {"forward": 8, "step": 8 + 16}
GATE_OPERATIONS = {"forward": 2, "step": 2 + 4}


@dataclasses.dataclass(frozen=True)
class Job:
    """A program to compile.

    Attributes:
      kind: one of KINDS.
      recipe, overrides: as for `main.py`.
      batch_per_chip: images.
      slice_name: the slice that the compiler knows.
      chips: of the slice; None for all.
      version: `now`, or `before`.
      is_quick: whether stages have fewer blocks, which count more than once.
    """

    kind: str
    recipe: str
    overrides: tuple[str, ...]
    batch_per_chip: int
    slice_name: str
    chips: int | None = None
    version: str = "now"
    is_quick: bool = False

    def config_and_task(self):
        config = load_recipe(self.recipe)
        apply_overrides(config, split_overrides(self.overrides)[0])
        return check_config(config)

    @property
    def key(self):
        parts = [self.kind, self.recipe, *self.overrides, self.batch_per_chip]
        parts += [self.slice_name, self.chips or "all", self.version]
        return " ".join(map(str, parts + ["quick"] * self.is_quick))


def few(depths):
    """One block where there are few, and two where there are many."""
    return tuple(1 if depth <= 2 else 2 for depth in depths)


def compile_job(job, checkout):
    """Compiles in a process of its own, and returns what the results say of it."""
    _, task = job.config_and_task()
    depths = tuple(task.model.encoder.depths)
    overrides = list(job.overrides)
    if job.is_quick:
        overrides.append(f"--config.model.depths={few(depths)}".replace(" ", ""))
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        dump = directory / "dump"
        dump.mkdir()
        what = {
            "kind": job.kind,
            "recipe": job.recipe,
            "overrides": overrides,
            "batch_per_chip": job.batch_per_chip,
            "slice_name": job.slice_name,
            "chips": job.chips,
            "directory": name,
        }
        start = time.monotonic()
        # Old checkouts may have no kernels. Then schedules of hundreds of convolutions,
        # which nobody reads, would take most of the time.
        for with_schedules in [True] if job.version == "now" else [False, True]:
            subprocess.run(
                [sys.executable, HERE / "compile_program.py", json.dumps(what)],
                env=environment(checkout, dump if with_schedules else None),
                stderr=None if os.environ.get("VERBOSE") else subprocess.DEVNULL,
                check=True,
            )
            about = json.loads((directory / "about.json").read_text())
            text = ""
            if not about["problem"]:
                text = (directory / "program.txt").read_text()
            if "tpu_custom_call" not in text:
                break
        chip = chip_of_slice(job.slice_name)
        operations = list(
            hlo.operations(
                text,
                lambda name: bundles.find_schedule(dump, name),
                bytes_per_cycle=chip.bandwidth / chip.clock,
            )
        )
    seconds = time.monotonic() - start
    result = dataclasses.asdict(job) | about | versions()
    result |= {"commit": commit_of(checkout), "whole_seconds": seconds}
    result |= {"depths": list(depths), "compiled_depths": about["depths"]}
    # With fewer blocks, the compiled net has fewer operations, too.
    result["multiply_adds"] = task.multiply_adds
    result |= figures(job, operations, about, task)
    result["limits"] = limits(job, task, about)
    return result


def environment(checkout, dump):
    own = {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(checkout),
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if dump:
        own["LIBTPU_INIT_ARGS"] = bundles.flags(dump)
    # libtpu would end the program at flags of other compilers.
    return {name: v for name, v in os.environ.items() if name != "XLA_FLAGS"} | own


def versions():
    packages = ("jax", "jaxlib", "libtpu", "flax")
    return {name: importlib.metadata.version(name) for name in packages} | {
        "python": platform.python_version(),
        "command": recorded.command("benchmarks/tpu.py"),
    }


def commit_of(checkout):
    def git(*command):
        command = ["git", "-C", checkout, *command]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "focalnet_jax", "configs", "benchmarks/*.py")
    return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "") or None


def figures(job, operations, about, task):
    """Milliseconds of a step or a forward pass, by category, and what comes of them.

    What blocks take counts as often as the whole net has more of them than were compiled,
    and the optimiser as much more as there are parameters. What the compiler has added
    without saying for which block counts once.
    """
    if not operations:
        return {"milliseconds": None}
    chip = chip_of_slice(job.slice_name)
    depths, compiled = task.model.encoder.depths, about["depths"]
    parameters = count_params(task.model)
    milliseconds = dict.fromkeys(CATEGORIES, 0.0)
    kernels = collections.Counter()
    for operation in operations:
        stage = re.search(r"layers_(\d+)/", operation.source)
        factor = 1.0
        if stage and "blocks" in operation.source:
            factor = depths[int(stage[1])] / compiled[int(stage[1])]
        name = category(operation, job.batch_per_chip)
        if name == "optimiser":
            factor = parameters / about["parameters"]
        milliseconds[name] += 1e3 * factor * operation.total_cycles / chip.clock
        if operation.is_kernel and operation.cycles is None:
            kernels["uncounted_calls"] += operation.times
        elif operation.is_kernel:
            kernels["calls"] += round(factor * operation.times)
            kernels["open_loops"] += operation.open_loops
    total = sum(milliseconds.values())
    speed = job.batch_per_chip / total * 1e3
    return {
        "categories": {name: round(ms, 3) for name, ms in milliseconds.items()},
        "milliseconds": round(total, 3),
        "images_per_second_and_chip": round(speed, 1),
        "kernels": dict(kernels),
    }


def category(operation, batch):
    """The category of an operation, by what it comes from in the traced program."""
    source = operation.source
    last = source.rsplit("/", 1)[-1]
    direction = "backward" if "transpose(jvp" in source else "forward"
    if operation.is_kernel and "layers_" in source and "blocks" in source:
        whose = "the operator" if "focal_aggregation" in source else "positions"
        return f"kernels of {whose}, {direction}"
    # The compiler fuses a product with a change of layout behind it. The name of such an
    # output fusion is that of its last part.
    is_product = "kind=kOutput" in operation.text
    if is_product and last == "transpose":
        return f"matrix products, {direction}"
    if operation.kind in ("copy", "transpose") or last in ("copy", "transpose"):
        return "copies between layouts"
    if not source:
        return "other"
    if "FocalNet" not in source:
        return category_outside(operation, batch)
    if "patch_embed" in source or "downsample" in source:
        return "embeddings"
    if "encoder" not in source:
        return "head and loss"
    if "layers_" not in source:
        return "mixing, erasing, preparing" if "encoder.embed" in source else "other"
    if last == "conv_general_dilated":
        return "depthwise convolutions"
    # The gradient of a bias is a sum beside a product.
    if last == "dot_general" or re.search(r"/(f|h|proj|fc1|fc2)/reduce_sum", source):
        return f"matrix products, {direction}"
    if re.search(r"/(norm\d|ln)/", source):
        return "norms"
    if "/modulation/" in source:
        return "gates and sums of the operator"
    return f"matrix products, {direction}" if "/mlp/" in source else "other"


def category_outside(operation, batch):
    """That of an operation outside the model: before it, after it, or of the optimiser.

    What has a row for each image isn't the optimiser's, and what has numbers of images or
    random bits isn't either.
    """
    if re.search(r"softmax|jvp", operation.source):
        return "head and loss"
    drawn = r"threefry|random|randint|_beta|_gamma|erf_inv|cumsum|RandomErasing|[Mm]ix"
    is_of_images = re.search(rf"\w+\[{batch}[,\]]|[us](8|32)\[|pred\[", operation.result)
    if is_of_images or re.search(drawn, operation.source):
        return "mixing, erasing, preparing"
    return "optimiser"


def limits(job, task, about):
    """Milliseconds that each unit of the chip needs at least, in the best case."""
    chip = chip_of_slice(job.slice_name)
    encoder = task.model.encoder
    passes = 3 if job.kind == "step" else 1
    operations = 0
    sides = [side / encoder.patch_size for side in about["image"][:2]]
    for stage, depth in enumerate(encoder.depths):
        channels = encoder.embed_dim * 2**stage
        elements = sides[0] * sides[1] / 4**stage * channels
        levels = encoder.focal_levels[stage]
        window, factor = encoder.focal_windows[stage], encoder.focal_factor
        sizes = [window + factor * level for level in range(levels)]
        taps = 2 * passes * sum(size**2 for size in sizes)
        gelus = GELU_OPERATIONS[job.kind] * (levels + encoder.mlp_ratio)
        gates = GATE_OPERATIONS[job.kind] * (levels + 2)
        each = taps + gelus + gates + 2 * NORM_OPERATIONS[job.kind]
        operations += depth * elements * each
    batch = job.batch_per_chip
    multiply_adds = task.multiply_adds or 0
    found = {
        "matrix unit": 2 * passes * multiply_adds * batch / chip.peak,
        "vector unit": operations * batch / chip.vector_peak,
    }
    # Of fewer blocks, the compiler has counted fewer bytes.
    if "bytes_accessed" in about and not job.is_quick:
        found["memory"] = about["bytes_accessed"] / chip.bandwidth
    return {name: round(1e3 * seconds, 3) for name, seconds in found.items()}


# --- Results ---------------------------------------------------------------------


def read_results():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def write_result(key, result):
    results = read_results() | {key: result}
    RESULTS.parent.mkdir(exist_ok=True)
    aside = RESULTS.with_suffix(".new")
    aside.write_text(json.dumps(results, indent=1) + "\n")
    aside.replace(RESULTS)


def run(job, checkout, *, resume):
    known = read_results().get(job.key)
    if resume and known and known["commit"] == commit_of(checkout):
        return known
    print(f"{job.key} ...", flush=True)
    result = compile_job(job, checkout)
    write_result(job.key, result)
    if result["problem"]:
        print(f"  {result['problem'][:200]}")
    else:
        print(
            f"  {result['milliseconds']:.1f} ms, "
            f"{result['images_per_second_and_chip']:.0f} images/s/chip; "
            f"compiled in {result['compile_seconds']:.0f} s",
            flush=True,
        )
    return result


def growth_jobs(slice_name, overrides, is_quick):
    cases = [(size, GROWTH_BATCH) for size in GROWTH_SIZES]
    cases += [((224, 224), batch) for batch in GROWTH_BATCHES if batch != GROWTH_BATCH]
    for size, batch in cases:
        size = f"--config.data.image_size={size}".replace(" ", "")
        for kind in KINDS:
            yield Job(
                kind,
                GROWTH_RECIPE,
                (*overrides, size),
                batch,
                slice_name,
                chips=1,
                is_quick=is_quick,
            )


def mfu(result):
    return model_flops_utilization(
        result["multiply_adds"],
        result["images_per_second_and_chip"],
        chips=1,
        peak=chip_of_slice(result["slice_name"]).peak,
    )


def print_table(results):
    """Before and now side by side, for each program that isn't one of growth.

    First come the programs of which both have been compiled.
    """
    groups = collections.defaultdict(dict)
    for result in results.values():
        if not is_of_growth(result):
            names = ("kind", "recipe", "overrides", "batch_per_chip", "slice_name")
            key = json.dumps([result[name] for name in names] + [result["is_quick"]])
            groups[key][result["version"]] = result

    def place(group):
        some = next(iter(group.values()))
        return "before" not in group, KINDS.index(some["kind"])

    for group in sorted(groups.values(), key=place):
        print_group({v: group[v] for v in ("before", "now") if v in group})


def print_group(group):
    some = [*group.values()][-1]
    is_step = some["kind"] == "step"
    what = "Training step" if is_step else "Forward pass"
    print(
        f"\n{what} of {some['recipe']}, {some['batch_per_chip']} images of "
        f"{' x '.join(map(str, some['image']))} a chip, {some['slice_name']}"
        + "".join(f", `{override}`" for override in some["overrides"])
    )
    if some["is_quick"]:
        print(
            f"\nCompiled with {some['compiled_depths']} blocks in the stages. What they "
            f"take is counted as often as there are blocks: {some['depths']}. What the "
            "optimiser takes is scaled by the number of parameters."
        )
    print(f"\n| ms | {' | '.join(group)} |\n|---|{'---|' * len(group)}")

    def row(name, show):
        cells = [show(r) if not r["problem"] else "" for r in group.values()]
        print(f"| {name} | {' | '.join(cells)} |")

    for name in CATEGORIES:
        if any(not r["problem"] and r["categories"][name] for r in group.values()):
            row(name, lambda r, name=name: f"{r['categories'][name]:.2f}")
    row("**all**", lambda r: f"**{r['milliseconds']:.1f}**")
    row("images/s/chip", lambda r: f"{r['images_per_second_and_chip']:,.0f}")
    if is_step:
        row("MFU", lambda r: f"{mfu(r):.1%}")
    row("calls of kernels", lambda r: str(r["kernels"].get("calls", 0)))
    for name in ("uncounted_calls", "open_loops"):
        if any(r["kernels"].get(name) for r in group.values() if not r["problem"]):
            row(_NOT_COUNTED[name], lambda r, name=name: str(r["kernels"].get(name, 0)))
    for unit in some["limits"]:
        row(f"limit: {unit}", lambda r, unit=unit: f"{r['limits'][unit]:.1f}")
    if not some["is_quick"]:
        row("GB of arguments", lambda r: f"{r['argument_bytes'] / 1e9:.2f}")
        row("GB of temporaries", lambda r: f"{r['temporary_bytes'] / 1e9:.2f}")
    row("compiled in", lambda r: f"{r['compile_seconds']:.0f} s")
    row("commit", lambda r: str(r["commit"]))


def is_of_growth(result):
    return result["recipe"] == GROWTH_RECIPE and result["chips"] == 1


def growth(results):
    """Results of growth, by whether batch grows, kind and shape; in order of pixels."""
    curves = collections.defaultdict(list)
    for result in results.values():
        if not is_of_growth(result) or result["problem"]:
            continue
        height, width, _ = result["image"]
        shape = "square" if height == width else "1:4"
        if result["batch_per_chip"] == GROWTH_BATCH:
            curves[result["kind"], shape].append(result)
        if (height, width) == (224, 224):
            curves[result["kind"], "batch"].append(result)
    for curve in curves.values():
        curve.sort(key=pixels)
    return curves


def pixels(result):
    return result["batch_per_chip"] * result["image"][0] * result["image"][1]


def print_growth(results):
    curves = growth(results)
    if not curves:
        return
    print(
        "\n| what grows | program | images | megapixels | ms | ms/megapixel "
        "| GB of temporaries | MB/megapixel |\n|---|---|---|---|---|---|---|---|"
    )
    for (kind, shape), curve in sorted(curves.items()):
        for r in curve:
            mega = pixels(r) / 1e6
            size = " x ".join(map(str, r["image"][:2]))
            print(
                f"| {shape} | {kind} | {r['batch_per_chip']} of {size} | {mega:.2f} "
                f"| {r['milliseconds']:.2f} | {r['milliseconds'] / mega:.2f} "
                f"| {r['temporary_bytes'] / 1e9:.2f} "
                f"| {r['temporary_bytes'] / 1e6 / mega:.0f} |"
            )


def plot_growth(results, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    curves = growth(results)
    if not curves:
        raise SetupError("nothing of growth has been compiled: use --growth first")
    figure, axes = plt.subplots(2, 2, figsize=(9, 7), sharex=True)
    values = {
        "milliseconds": lambda r: r["milliseconds"],
        "GB of temporaries": lambda r: r["temporary_bytes"] / 1e9,
    }
    for column, kind in enumerate(KINDS):
        for row, (name, value) in enumerate(values.items()):
            axis = axes[row, column]
            for shape, marker in (("square", "o"), ("1:4", "s"), ("batch", "^")):
                curve = curves.get((kind, shape), [])
                x = [pixels(r) / 1e6 for r in curve]
                y = [value(r) for r in curve]
                axis.plot(x, y, marker=marker, label=shape)
            axis.set_ylabel(name)
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
        axes[0, column].set_title({"step": "training step", "forward": "forward"}[kind])
        axes[1, column].set_xlabel("megapixels a chip")
    axes[0, 0].set_xlim(left=0)  # of all four
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--slice", default="v5e:2x2", dest="slice_name")
    parser.add_argument("--batch-size", type=int, default=64, help="images a chip")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--before", type=pathlib.Path, help="another checkout")
    parser.add_argument("--quick", action="store_true", help="compile fewer blocks")
    parser.add_argument("--growth", action="store_true", help="with pixels and batch")
    parser.add_argument("--resume", action="store_true", help="leave out what is known")
    parser.add_argument("--table", action="store_true", help="print it, compile nothing")
    parser.add_argument("--plot", action="store_true", help="draw it, compile nothing")
    given, overrides = [], []
    for argument in sys.argv[1:]:
        is_override = re.match(r"--(no)?config\.", argument)
        (overrides if is_override else given).append(argument)
    args = parser.parse_args(given)
    if not (args.table or args.plot):
        compile_all(args, tuple(overrides))
    if args.plot:
        plot_growth(read_results(), PLOT)
    else:
        print_table(read_results())
        print_growth(read_results())


def compile_all(args, overrides):
    chip_of_slice(args.slice_name)
    checkouts = {"before": args.before, "now": HERE.parent}
    if args.growth:
        jobs = growth_jobs(args.slice_name, overrides, args.quick)
    else:
        jobs = (
            Job(
                kind,
                args.recipe,
                overrides,
                args.batch_size,
                args.slice_name,
                version=version,
                is_quick=args.quick,
            )
            for kind in args.kinds
            for version, checkout in checkouts.items()
            if checkout
        )
    for job in jobs:
        run(job, checkouts[job.version], resume=args.resume)


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        raise SystemExit(f"error: {error}") from None
