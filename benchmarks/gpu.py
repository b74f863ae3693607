"""FocalNets on one GPU: images a second beside PyTorch's, and the operator alone.

    pip install 'jax[cuda13]' flax optax chex
    pip install torch timm transformers           # for the peers; any may be missing
    python benchmarks/gpu.py [--minutes=8] [--json=FILE]
    python benchmarks/gpu.py --table              # Markdown from the results

What is measured, in an order that does what is most important first:

* Whether each implementation of the operator trains in bfloat16, and how fast, in
  FocalNet-B (LRF) with one block a stage. The fastest one whose losses are those of `lax`
  is what our nets below are computed with. And, there as well, how far loss, logits and
  gradients in bfloat16 are from those in float32, for our net and for timm's.
* The operator alone, forward and with the gradients of all operands, at the stages of
  FocalNet-B (LRF: windows 3, 5 and 7) in bfloat16 at batch 128, beside PyTorch with
  channels last, and beside the time that the card's memory needs at least.
* Training steps and inference of FocalNet-T, S and B (LRF, as `configs/base.py` has it by
  default) at 224 pixels, and of FocalNet-L with 4 levels at 384, beside timm, eager and
  compiled, and transformers, all with channels last and their options as ours.

A training step is the loss (softmax cross-entropy), the gradients and AdamW, with float32
parameters and computation in bfloat16: ours by `dtype`, the peers' by `torch.autocast`,
with a fused optimiser. In inference the parameters are bfloat16, too.

Each contender is a process, and all take turns in every round, in an order that changes.
A turn is about half a second long, a tenth for the operator. Before it a contender
computes once without timing; after it PyTorch gives its cached memory back. Memory is not
preallocated. Contenders of one framework are prepared one after the other, and both
frameworks at once. The results are medians over the rounds, and the ratios are medians,
least and greatest over rounds. Times of the operator hold the dispatch by the host, which
shows where they are short.

After each measurement the results are written. When the time is up, or the program was
ended, the same command goes on with what is missing: what is there of the same card and
the same versions is kept, the compilers' caches as well. An error of a contender is a
result, too; --anew forgets all results. With VERBOSE=1 contenders print what they print.
"""

import argparse
import dataclasses
import functools
import importlib.metadata
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import recorded
import turns

ROOT = pathlib.Path(__file__).parents[1]
CONTENDERS = pathlib.Path(__file__).with_name("gpu_contenders.py")
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
VERSIONS = ("jax", "jaxlib", "flax", "optax", "chex", "torch", "timm", "transformers")
CACHE = pathlib.Path(tempfile.gettempdir(), "focalnet_jax_gpu")
# The part of the time that is kept for the turns of the last measurement.
FOR_TURNS = 0.05

WINDOWS = (3, 5, 7)
IMPLEMENTATIONS_TRAIN = "one block a stage: training"
# Of losses that are nearly the same, after up to three steps in bfloat16. They begin at
# 6.9.
LOSS_TOLERANCE = 0.05
# They are for TPUs, or for tests.
NOT_FOR_GPUS = {"fused", "interpreted", "triton_interpreted"}
ONE_BLOCK = {"depths": (1, 1, 1, 1)}
TINY = ONE_BLOCK | {"embed_dim": 8}
PEERS = {
    "timm": {"kind": "timm", "compiled": False},
    "timm compiled": {"kind": "timm", "compiled": True},
    "transformers": {"kind": "transformers", "compiled": False},
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Measurements that share their contenders.

    Attributes:
      name: of the group, with which the names of its measurements begin.
      tasks: what is measured, in this order.
      contenders: by name what their processes are told beside `subject`.
      subject: what is measured, such as the model and its batch.
    """

    name: str
    tasks: tuple[str, ...]
    contenders: dict[str, dict]
    subject: dict


def plan(*, tiny=False):
    """The groups in the order of their importance."""
    sys.path.insert(0, str(ROOT))  # The package need not be installed.
    from focalnet_jax.ops import IMPLEMENTATIONS

    implementations = {
        name: {"framework": "jax", "implementation": name}
        for name in IMPLEMENTATIONS
        if name not in NOT_FOR_GPUS
    }
    peers = {name: {"framework": "torch", **peer} for name, peer in PEERS.items()}
    ours = {"framework": "jax", "implementation": "fastest"}

    def net(model, batch_size, image_size=224, options=None):
        return {
            "model": model,
            "batch_size": 2 if tiny else batch_size,
            "image_size": 32 if tiny else image_size,
            "options": TINY if tiny else options or {},
            "turn_seconds": 0.01 if tiny else 0.5,
        }

    def whole(model, batch_size, image_size=224):
        return Group(
            model,
            ("training", "inference"),
            {"ours": ours} | peers,
            net(model, batch_size, image_size),
        )

    def operator(*stages):
        passes = ("forward", "gradient")
        return Group(
            "operator",
            ("copy", *(f"stage {s} {way}" for s in stages for way in passes)),
            implementations
            | {
                "shifted + lax": {"framework": "jax", "implementation": "shifted + lax"},
                "torch": {"framework": "torch", "compiled": False},
                "torch compiled": {"framework": "torch", "compiled": True},
            },
            {
                "batch_size": 2 if tiny else 128,
                "map_size": 8 if tiny else 56,
                "embed_dim": 8 if tiny else 128,
                "windows": WINDOWS,
                "copy_bytes": 2**16 if tiny else 2**29,
                "turn_seconds": 0.01 if tiny else 0.1,
            },
        )

    one_block = net("focalnet_base_lrf", 64, options=ONE_BLOCK)
    both = {"ours": ours, "timm": peers["timm"]}
    # A run may end after any of them.
    return [
        Group("one block a stage", ("training",), implementations, one_block),
        whole("focalnet_tiny_lrf", 128),
        operator(1, 3),
        whole("focalnet_base_lrf", 64),
        Group("one block a stage", ("agreement",), both, one_block),
        operator(2, 4),
        whole("focalnet_large_fl4", 16, 384),
        whole("focalnet_small_lrf", 128),
    ]


# --- Measuring ---------------------------------------------------------------


class Results:
    """A file of results, which is whole at any time.

    Attributes:
      about: the machine, the versions and the command.
      measurements: by name, each with `subject`, `contenders` and `is_whole`.

    Raises:
      SystemExit: the file has results of another machine or other versions.
    """

    def __init__(self, path, about, *, anew=False):
        self.path, self.about, self.measurements = path, about, {}
        if path.exists() and not anew:
            before = json.loads(path.read_text())
            for name, value in about.items():
                if name != "command" and before["about"].get(name) != value:
                    raise SystemExit(
                        f"error: {path} has results of {name} "
                        f"{before['about'].get(name)!r}, and here it is {value!r}: "
                        "give another --json=FILE, or --anew to forget them"
                    )
            self.measurements = before["measurements"]
        self.write()

    def lacks(self, name, contenders):
        """Whether a measurement is missing, or was broken off, or lacks a contender."""
        measurement = self.measurements.get(name, {"is_whole": False})
        return not measurement["is_whole"] or any(
            contender not in measurement["contenders"] for contender in contenders
        )

    def add(self, name, measurement):
        """Adds a measurement, unless one is there that holds more."""
        before = self.measurements.get(name, {"contenders": {}})
        if len(measurement["contenders"]) >= len(before["contenders"]):
            self.measurements[name] = measurement
            self.write()

    def write(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(f".{uuid.uuid4().hex[:8]}.{self.path.name}")
        data = {"about": self.about, "measurements": self.measurements}
        text = json.dumps(data, indent=2)
        aside.write_text(text + "\n")
        aside.replace(self.path)


def measure(groups, results, start, *, rounds, until, patience):
    """Measures what the results lack; returns the names of what is left.

    Args:
      groups: what to measure, see `plan`.
      results: `Results`, which are added to.
      start: makes a `turns.Contender` of a name and a specification.
      rounds: turns of each contender.
      until: when, on the clock of `time.monotonic`, the time is up.
      patience: the seconds that a contender may take to prepare.
    """
    reserve = FOR_TURNS * max(until - time.monotonic(), 0)
    left = []
    for group in groups:
        names = {task: f"{group.name}: {task}" for task in group.tasks}
        lacking = {
            task: name
            for task, name in names.items()
            if results.lacks(name, group.contenders)
        }
        if time.monotonic() >= until - reserve:
            left += lacking.values()
        if not lacking or time.monotonic() >= until - reserve:
            continue
        contenders = []
        try:
            for name, its in group.contenders.items():
                if its.get("implementation") == "fastest":
                    its = its | {"implementation": fastest(results.measurements)}
                contenders.append(start(name, group.subject | its))
            for task, name in lacking.items():
                if time.monotonic() >= until - reserve:
                    left.append(name)
                    continue
                print(name, file=sys.stderr, flush=True)
                answers, is_whole = turns.compare(
                    contenders,
                    task,
                    rounds=0 if task == "agreement" else rounds,
                    patience=patience,
                    prepare_until=until - reserve,
                    until=until,
                )
                measurement = {"subject": group.subject, "contenders": answers}
                results.add(name, measurement | {"is_whole": is_whole})
                if not is_whole:
                    left.append(name)
        finally:
            for contender in contenders:
                contender.end()
    return list(dict.fromkeys(left))  # Groups may share a measurement.


def fastest(measurements):
    """The implementation that trains fastest, or `"auto"` if none was measured.

    One that is fast and wrong is none of them: its losses would differ.
    """
    answers = measurements.get(IMPLEMENTATIONS_TRAIN, {"contenders": {}})["contenders"]
    known = [answers.get(name, {}).get("losses") for name in ("lax", "shifted")]
    expected = next(filter(None, known), None)
    seconds = {
        name: median(answer)
        for name, answer in answers.items()
        if median(answer)
        and expected
        and all(
            abs(loss - other) < LOSS_TOLERANCE
            for loss, other in zip(answer["losses"], expected, strict=True)
        )
    }
    return min(seconds, key=seconds.get, default="auto")


def start_contender(name, spec, *, platform):
    """The process of a contender."""
    spec = spec | {"platform": platform}
    environment = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TOKENIZERS_PARALLELISM": "false",
    } | os.environ
    if spec["framework"] == "torch":  # The card is not JAX's there.
        environment["JAX_PLATFORMS"] = "cpu"
    paths = [str(ROOT), os.environ.get("PYTHONPATH")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return turns.Contender(
        name,
        [sys.executable, str(CONTENDERS), json.dumps(spec)],
        environment=environment,
        lane=spec["framework"],
    )


ABOUT = """
import jax, json
device = jax.devices()[0]
print(json.dumps([jax.default_backend(), device.device_kind]))
"""


def about_here():
    """The machine, the versions and the command."""
    result = subprocess.run(
        [sys.executable, "-c", ABOUT],
        env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [""])[-1]
        raise SystemExit(f"error: jax does not start: {last}")
    backend, card = json.loads(result.stdout.splitlines()[-1])
    return {
        "card": card,
        "platform": backend,
        "driver": driver(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in VERSIONS},
        "command": recorded.command("benchmarks/gpu.py"),
    }


def driver():
    """The version of NVIDIA's driver, or None where it can't be told."""
    if not (program := shutil.which("nvidia-smi")):
        return None
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    return (result.stdout.splitlines() or [None])[0] if not result.returncode else None


def version(library):
    """The version of a library, or None if it is not there."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- Tables ------------------------------------------------------------------


def tables(data):
    """The results as Markdown."""
    about, measurements = data["about"], data["measurements"]
    known = [f"{k} {v}" for k, v in about["versions"].items() if v]
    driver = f", driver {about['driver']}" if about["driver"] else ""
    yield f"{about['card']}{driver}, Python {about['python']}, {', '.join(known)}:"
    yield f"`{about['command']}`."
    for head, rows in (
        (IMPLEMENTATION_HEAD, list(rows_of_implementations(measurements))),
        (AGREEMENT_HEAD, list(rows_of_agreement(measurements))),
        (NET_HEAD, list(rows_of_nets(measurements))),
        *operator_table(measurements),
    ):
        if rows:
            yield ""
            yield from table(head, rows)
    errors = [
        f"* {name}, {contender}: {answer['error']}"
        for name, measurement in measurements.items()
        for contender, answer in measurement["contenders"].items()
        if "error" in answer
    ]
    if errors:
        yield from ["", "What could not be measured:", "", *errors]


def table(head, rows):
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def median(answer):
    """The median seconds of a contender, or None."""
    return statistics.median(answer["seconds"]) if answer.get("seconds") else None


IMPLEMENTATION_HEAD = ["one block a stage, training", "images/s", "first losses"]


def rows_of_implementations(measurements):
    training = measurements.get(IMPLEMENTATIONS_TRAIN, {"contenders": {}})
    for name, answer in training["contenders"].items():
        speed, losses = "error", ""
        if seconds := median(answer):
            speed = f"{training['subject']['batch_size'] / seconds:,.0f}"
            losses = ", ".join(f"{loss:.4f}" for loss in answer["losses"])
        yield [name, speed, losses]


AGREEMENT_HEAD = [
    *("one block a stage, bfloat16 against float32", "loss in float32"),
    *("loss in bfloat16", "error of logits", "error of gradients"),
]


def rows_of_agreement(measurements):
    agreement = measurements.get("one block a stage: agreement", {"contenders": {}})
    for name, told in agreement["contenders"].items():
        if "error" not in told:
            losses = [f"{told[key]:.4f}" for key in ("float32_loss", "bfloat16_loss")]
            errors = [f"{told[key]:.1e}" for key in ("logits_error", "gradients_error")]
            yield [name, *losses, *errors]


NET_HEAD = ["images/s", "ours", *PEERS, *(f"ours / {name}" for name in PEERS)]


def rows_of_nets(measurements):
    for name, measurement in measurements.items():
        answers = measurement["contenders"]
        if not name.startswith("focalnet_"):
            continue
        subject = measurement["subject"]
        model, _, task = name.partition(": ")
        title = f"{model}, {subject['image_size']} pixels, batch "
        title += f"{subject['batch_size']}, {task}"
        if used := answers.get("ours", {}).get("implementation"):
            title += f" by `{used}`"
        all_seconds = [answers.get(n, {}).get("seconds") for n in ("ours", *PEERS)]
        speeds = [
            f"{subject['batch_size'] / statistics.median(s):,.0f}" if s else ""
            for s in all_seconds
        ]
        own, *others = all_seconds
        compared = [with_spread(own, s) if own and s else "" for s in others]
        yield [title, *speeds, *compared]


def with_spread(own, theirs):
    middle, low, high = turns.ratios(own, theirs)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def operator_table(measurements):
    """The operator's times, and beside them the times that the memory needs."""
    copies = measurements.get("operator: copy", {}).get("contenders", {}).values()
    speeds = [a["bytes"] / median(a) for a in copies if a.get("seconds")]
    bandwidth = max(speeds, default=None)
    stages = {
        name.removeprefix("operator: "): measurement
        for name, measurement in sorted(measurements.items())
        if name.startswith("operator: stage")
    }
    contenders = list(dict.fromkeys(n for m in stages.values() for n in m["contenders"]))
    rows = []
    for name, measurement in stages.items():
        seconds = [median(measurement["contenders"].get(n, {})) for n in contenders]
        _, stage, way = name.split()
        least = floors(measurement["subject"], int(stage), way, bandwidth)
        cells = [*seconds, *least]
        rows.append([name, *(f"{1e3 * s:.3f}" if s else "" for s in cells)])
    title = "operator, ms"
    if bandwidth:
        title += f" (copies at {bandwidth / 1e12:.2f} TB/s)"
    yield [title, *contenders, "each level alone, at least", "fused, at least"], rows


def floors(subject, stage, way, bandwidth):
    """The seconds that memory needs for the operator's maps, in bfloat16.

    Returns:
      If each level reads and writes a map and nothing is fused with it, with gradients
      three times as much again. And if each operand is read once and each result written
      once: context, gates and result, with gradients their cotangents as well.
    """
    if not bandwidth:
        return None, None
    size = subject["map_size"] // 2 ** (stage - 1)
    positions = 2 * subject["batch_size"] * size**2
    one_map = positions * subject["embed_dim"] * 2 ** (stage - 1)
    levels = len(subject["windows"])
    gates = positions * (levels + 1)
    apart, fused = levels * 2 * one_map, 2 * one_map + gates
    if way == "gradient":
        # Backward, context, gates and a cotangent are read and two more written.
        apart, fused = 4 * apart, fused + 3 * one_map + 2 * gates
    return apart / bandwidth, fused / bandwidth


# --- The command line ----------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=8.0, help="how long to measure at most")
    add("--rounds", type=int, default=5)
    add("--patience", type=float, default=240.0, help="seconds to wait for a contender")
    add("--json", type=pathlib.Path, default=RESULTS, help="where the results are")
    add("--groups", nargs="+", help="of the results' names what stands before the colon")
    add("--contenders", nargs="+", help="the names of those that take part")
    add("--anew", action="store_true", help="forget the results that are there")
    add("--table", action="store_true", help="print the results as Markdown")
    add("--tiny", action="store_true", help="try the program, on a CPU too")
    args = parser.parse_args()
    if args.table:
        if not args.json.exists():
            parser.error(f"{args.json} does not exist: measure first")
        print(*tables(json.loads(args.json.read_text())), sep="\n")
        return
    if args.tiny and args.json == RESULTS:
        parser.error("--tiny needs --json=FILE for its results")
    until = time.monotonic() + 60 * args.minutes
    groups = chosen(plan(tiny=args.tiny), args.groups, args.contenders)
    about = about_here() | {"tiny": args.tiny}
    if about["platform"] != "gpu" and not args.tiny:
        raise SystemExit("error: jax finds no GPU; --tiny tries the program elsewhere")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # Contenders end as well.
    results = Results(args.json, about, anew=args.anew)
    left = measure(
        groups,
        results,
        functools.partial(start_contender, platform=about["platform"]),
        rounds=args.rounds,
        until=until,
        patience=args.patience,
    )
    print(*tables({"about": about, "measurements": results.measurements}), sep="\n")
    if left:
        print(f"\nThe time was up. Left for the same command: {', '.join(left)}")


def chosen(groups, names, contenders):
    """Those groups and contenders that are named, or all if none are.

    Raises:
      SystemExit: there is none of such a name.
    """
    known = {group.name for group in groups}
    rivals = {name for group in groups for name in group.contenders}
    for given, all_names in ((names, known), (contenders, rivals)):
        if unknown := set(given or ()) - all_names:
            raise SystemExit(
                f"error: nothing is called {', '.join(sorted(unknown))}: "
                f"there are {', '.join(sorted(all_names))}"
            )
    picked = [
        dataclasses.replace(
            group,
            contenders={
                name: its
                for name, its in group.contenders.items()
                if not contenders or name in contenders
            },
        )
        for group in groups
        if not names or group.name in names
    ]
    return [group for group in picked if group.contenders]


if __name__ == "__main__":
    main()
