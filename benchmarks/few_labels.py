"""What masked image modelling brings where labels are few, on the handwritten digits.

    python benchmarks/few_labels.py [--json=FILE]
    python benchmarks/few_labels.py --table      # what has been measured so far
    python benchmarks/few_labels.py --plot       # draws docs/few_labels.png of it

One run of configs/simmim.py:digits sees the 1,437 training images without their labels.
Then classifiers of configs/digits.py learn from some of the labels, once from scratch and
once from that run. Both have the same steps and batches, and each of two learning rates.
This is done for several sets of labels that don't overlap, and for each number of labels
the table has the mean of the better rate, with the least and greatest. All are tested on
the same 360 images. The better rate is chosen on these very images, for both starts
alike, so both are a little too good.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import statistics
import sys
import tempfile

import recorded

LABELS = (25, 50, 100, 200, 400)
RATES = (1e-3, 3e-3)
SETS = 3
STEPS, BATCH = 400, 25
STARTS = ("scratch", "masked")
ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/few_labels.json"
PICTURE = ROOT / "docs/few_labels.png"


def pretrain(directory, epochs):
    """Runs masked image modelling; returns its workdir and its loss on test images."""
    from etils import epath

    from focalnet_jax.train import check_config, load_recipe, train

    config = load_recipe("simmim:digits")
    config.num_epochs = epochs
    workdir = epath.Path(directory) / "simmim"
    metrics = train(*check_config(config), workdir)
    return workdir, metrics["test/loss"]


def accuracy(directory, *, start, labels, number, rate):
    """The share of the test images that a classifier gets right.

    Args:
      directory: for the run.
      start: a workdir to start from, or None.
      labels: how many there are.
      number: which set of labels it is.
      rate: the learning rate.
    """
    from etils import epath

    from focalnet_jax.train import check_config, load_recipe, train

    config = load_recipe("digits")
    config.data.train_split = f"train[{number * labels}:{(number + 1) * labels}]"
    config.batch_size = config.learning_rate_batch_size = BATCH
    config.num_steps = config.evaluate_every_steps = STEPS
    config.learning_rate = rate
    config.warmup_epochs = 0.1 * STEPS * BATCH / labels
    config.checkpoint.every_steps = STEPS
    config.log_every_steps = STEPS
    if start:
        config.init_from = str(start)
        config.reset_head = True
    name = f"{'masked' if start else 'scratch'}_{labels}_{number}_{rate:g}"
    metrics = train(*check_config(config), epath.Path(directory) / name)
    return metrics["test/top1"]


def measure(args):
    """Yields the results whenever there is one more."""
    import jax

    results = []
    with tempfile.TemporaryDirectory() as directory:
        # All classifiers are one program.
        jax.config.update("jax_compilation_cache_dir", f"{directory}/compiled")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        simmim, loss = pretrain(directory, args.epochs)
        for labels in LABELS:
            for start in STARTS:
                for rate in RATES:
                    found = [
                        accuracy(
                            directory,
                            start=simmim if start == "masked" else None,
                            labels=labels,
                            number=number,
                            rate=rate,
                        )
                        for number in range(SETS)
                    ]
                    entry = dict(labels=labels, start=start, rate=rate, top1=found)
                    print(json.dumps(entry), file=sys.stderr)
                    results.append(entry)
                    told = about(args) | {"masked_loss": round(loss, 4)}
                    yield {"about": told, "results": results}


def about(args):
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
    command = f"python benchmarks/few_labels.py --epochs={args.epochs:g}"
    settings = dict(steps=STEPS, batch=BATCH, sets=SETS, epochs=args.epochs)
    return dict(command=command, cores=os.cpu_count()) | settings | versions


def better_rates(run):
    """For each number of labels, the results of both starts at their better rate."""
    table = {}
    for entry in run["results"]:
        best = table.setdefault(entry["labels"], {})
        mean = statistics.mean(entry["top1"])
        if entry["start"] not in best or mean > statistics.mean(best[entry["start"]]):
            best[entry["start"]] = entry["top1"]
    return table


def markdown(run):
    lines = ["| labels | from scratch | after masked image modelling |", "|---|---|---|"]
    for labels, best in better_rates(run).items():
        cells = [
            f"{statistics.mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"
            for found in (best[start] for start in STARTS)
        ]
        lines.append(f"| {labels} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(run, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    table = better_rates(run)
    names = {"scratch": "from scratch", "masked": "after masked image modelling"}
    for start, colour in zip(STARTS, ("#777777", "#c2571a")):
        found = [best[start] for best in table.values()]
        means = [100 * statistics.mean(values) for values in found]
        axes.plot([*table], means, marker="o", color=colour, label=names[start])
        least, most = ([100 * pick(v) for v in found] for pick in (min, max))
        axes.fill_between([*table], least, most, color=colour, alpha=0.2, linewidth=0)
    axes.set(xscale="log", xlabel="labels", ylabel="top-1 of 360 test images, %")
    axes.set_xticks([*table], [*map(str, table)])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=float, default=200, help="of masked images")
    parser.add_argument("--json", type=pathlib.Path, help="where to write the results")
    parser.add_argument("--table", action="store_true", help="print it, run nothing")
    parser.add_argument("--plot", action="store_true", help="draw it, run nothing")
    args = parser.parse_args()
    path = args.json or RESULTS
    if args.table or args.plot:
        run = recorded.read(path)
        print(markdown(run)) if args.table else plot(run, PICTURE)
        return
    for run in measure(args):
        if args.json:
            args.json.write_text(json.dumps(run, indent=1) + "\n")
    print(markdown(run))


if __name__ == "__main__":
    main()
