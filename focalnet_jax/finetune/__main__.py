"""Trains a net on a folder of photographs, and shows how well it does.

    python -m focalnet_jax.finetune photos --weights=hf:microsoft/focalnet-tiny
    python -m focalnet_jax.finetune photos --image-size=64 --config.num_epochs=30
    python -m focalnet_jax.finetune photos --weights=runs/first --workdir=runs/second

DIR is DIR/CLASS/xxx.jpg, and a part of each class is set aside for testing. Or it is
DIR/train/CLASS/xxx.jpg with val or test beside train, which are used as they are. Images
are neither copied nor moved.

Without --weights, new weights are trained; where the images are few, those of a small
net.

The same command goes on with a run that was cut short. --config.FIELD=VALUE changes a
field, as for main.py: --config.num_epochs and --config.batch_size are such fields.
docs/finetune.md says more.
"""

import argparse
import contextlib
import copy
import logging
import pathlib
import sys
import time

import jax
from absl import logging as absl_logging
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    add_source,
    model_options,
    reading,
    spell,
)
from focalnet_jax.errors import SetupError, arguments_spelt, counted, spelt
from focalnet_jax.finetune.duration import (
    length_spelt,
    measure_speed,
    seconds_of_run,
    time_spelt,
)
from focalnet_jax.finetune.plan import Plan, Request, make_plan
from focalnet_jax.finetune.report import Outcome, chosen, commands, write_report
from focalnet_jax.finetune.results import answers_of
from focalnet_jax.finetune.workdir import check_as_trained, undone_on_failure
from focalnet_jax.image_size import height_and_width, size_spelt
from focalnet_jax.paths import given_name, local_path
from focalnet_jax.pretrained import load_model
from focalnet_jax.tasks.base import Task
from focalnet_jax.train import check_config, train
from focalnet_jax.train.config import field_of, total_steps
from focalnet_jax.train.freed_memory import keep_freed_memory
from focalnet_jax.train.overrides import split_overrides
from focalnet_jax.train.run.noise import leave_out_noise
from focalnet_jax.train.run.summary import Picture, pictures_of
from focalnet_jax.values import Number
from focalnet_jax.weights.params import find_best, newest_params_path

# A run that takes longer is told how to be shorter.
_LONG = 600


def main(argv: list[str] | None = None) -> None:
    """Runs the command line.

    Raises:
      SetupError: something is wrong. A run that has not begun leaves nothing.
    """
    run(parse(argv))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; `overrides` has the fields that it sets."""
    argv = sys.argv[1:] if argv is None else argv
    overrides, others = split_overrides(argv)
    parser = command_line.parser("python -m focalnet_jax.finetune", __doc__)
    add = parser.add_argument
    add("images", metavar="DIR")
    add_source(parser, more=". By default new weights are trained")
    add("--workdir", metavar="RUN", help="where the run lies; by default runs/DIR")
    add(
        "--test-share",
        type=command_line.reads(Number(0, 0.9, excludes_least=True)),
        default=0.2,
        metavar="SHARE",
        help="the share of each class that is for testing, if there is no split; by "
        "default 0.2",
    )
    add_reading_arguments(
        parser,
        head=False,
        seed="the seed of the run: of which images are for testing, of the order of the "
        "others, and of new parameters",
    )
    args = parser.parse_args(others)
    args.overrides = overrides
    return args


def run(args: argparse.Namespace) -> None:
    """Trains, tests and reports; raises as `main`."""
    if not args.images:
        raise SetupError("DIR is empty: it is a directory with one for each class")
    if args.workdir == "":
        raise SetupError("--workdir is empty: it is the directory of the run")
    command_line.find_devices()
    root = local_path(args.images)
    workdir = args.workdir or pathlib.Path("runs", given_name(args.images) or "images")
    workdir = local_path(workdir)
    plan = make_plan(
        Request(
            root=root,
            workdir=workdir,
            weights=args.weights,
            reading=reading(args),
            options=model_options(args.set),
            test_share=args.test_share,
            overrides=args.overrides,
        )
    )
    config, task = check_config(plan.config)
    steps = total_steps(config, plan.split.count("train"))
    if not steps:
        raise SetupError("a run of no steps learns nothing: num_steps is 1 at least")
    if _steps_done(workdir) >= steps:
        check_as_trained(workdir, config)
    began = time.monotonic()
    with undone_on_failure(workdir):
        plan.write()
        _introduce(plan, config, task)
        train(config, task, epath.Path(workdir))
    if _steps_done(workdir) < steps:
        return  # It was told to end, and has said so.
    outcome = _outcome(plan, config, task, seconds=time.monotonic() - began)
    write_report(outcome)
    _conclude(outcome)


def _steps_done(workdir: pathlib.Path) -> int:
    path = newest_params_path(epath.Path(workdir))
    return int(path.parent.name) if path else 0


def _introduce(plan: Plan, config: ConfigDict, task: Task) -> None:
    """Says what is trained on what, and how long it takes."""
    split = plan.split
    parts = [f"{split.count('train'):,} to train on"]
    if split.chooses == "val":
        parts.append(f"{split.count('val'):,} to choose the best checkpoint by")
    if split.count("test"):
        parts.append(f"{split.count('test'):,} to test with")
    print(
        f"{plan.request.root}: {counted(len(split.rows), 'image')} of "
        f"{len(split.classes):,} classes: {', '.join(parts)}"
    )
    for remark in plan.remarks:
        print(f"note: {spelt(remark, spell, command_line.assigned)}")
    size = size_spelt(config.data.image_size)
    origin = plan.request.weights or "new weights"
    print(f"{task.title}, from {origin}, on images of {size} pixels")
    images, done = split.count("train"), _steps_done(plan.request.workdir)
    steps = total_steps(config, images)
    if done >= steps:
        return
    with arguments_spelt(field_of(config)):
        splits = task.open(train=True)
    print("compiling the forward pass, to measure the speed", flush=True)
    speed = measure_speed(config, task, splits)
    seconds = seconds_of_run(config, speed, splits, steps=steps - done, all_steps=steps)
    length = length_spelt(steps, batch_size=config.batch_size, images=images)
    goes_on = f", of which {done:,} are done" if done else ""
    print(
        f"{length}{goes_on}: about {time_spelt(seconds)} on this machine "
        f"({jax.devices()[0].device_kind}), after the compilation"
    )
    # One that goes on stays as it was begun.
    if seconds > _LONG and not done and (ways := _ways_to_shorten(plan)):
        print(f"note: {', and '.join(ways)}")


def _ways_to_shorten(plan: Plan) -> list[str]:
    """What makes a run shorter, as the command line takes it."""
    given = {name for name, _ in plan.request.overrides}
    ways = []
    smaller = copy.deepcopy(plan.config)
    height, width = (side // 2 for side in height_and_width(smaller.data.image_size))
    smaller.data.image_size = height, width
    with contextlib.suppress(SetupError):  # So small images may not be allowed.
        check_config(smaller)
        is_field = "data.image_size" in given
        option = "--config.data.image_size" if is_field else "--image-size"
        size = height if height == width else f"{height}x{width}"
        ways.append(f"{option}={size} makes that about a quarter")
    field = "num_steps" if plan.config.num_steps else "num_epochs"
    if third := int(plan.config[field] / 3):
        ways.append(f"--config.{field}={third} makes that about a third")
    return ways


def _outcome(plan: Plan, config: ConfigDict, task: Task, *, seconds: float) -> Outcome:
    """Tests the best checkpoint, or the newest where none is known to be the best."""
    workdir, split = epath.Path(plan.request.workdir), plan.split
    best = find_best(workdir)
    path = best.path if best else newest_params_path(workdir)
    assert path is not None  # The run is finished.
    # With the average of the parameters beside them, a directory would mean these.
    net = load_model(path if path.name == "ema" else path.parent)
    tested = [row for row in split.rows if row.split == split.tests]
    print(f"testing on {counted(len(tested), 'image')}", flush=True)
    results = answers_of(net, plan.request.root, tested, batch_size=config.batch_size)
    images = split.count("train")
    steps = total_steps(config, images)
    facts = {
        "images": f"{images + sum(map(split.count, ('val', 'test'))):,} of "
        f"{len(split.classes):,} classes",
        "net": f"{task.title}, on images of "
        f"{size_spelt(net.preprocessing.image_size)} pixels",
        "weights at the start": plan.request.weights or "new ones",
        "trained": length_spelt(steps, batch_size=config.batch_size, images=images),
        "learning rate": f"{config.learning_rate:g}",
        "the last command took": time_spelt(seconds),
    }
    return Outcome(
        root=plan.request.root,
        workdir=plan.request.workdir,
        split=split,
        results=results,
        step=int(path.parent.name),
        is_best=best is not None,
        metric=best.metric if best else None,
        facts=facts,
        pictures=_pictures(task, len(split.classes)),
    )


def _pictures(task: Task, num_classes: int) -> list[Picture]:
    """The pictures of the loss and of the accuracy."""
    pictures = pictures_of(task.metrics, unit=task.unit)[:2]
    if num_classes > 5:
        return [*pictures]
    # The class is always among the first five of so few.
    return [picture._replace(metrics=picture.metrics[:1]) for picture in pictures]


def _conclude(outcome: Outcome) -> None:
    """Says how well the net does, and what to do with it."""
    results = outcome.results
    print(f"{chosen(outcome)}")
    print(
        f"{results.right:,} of {counted(len(results.answers), 'image')} are "
        f"classified correctly, {results.accuracy:.1%}"
    )
    by_class = results.by_class(outcome.split.rows)
    if lowest := [c for c in by_class if c.right < c.tested][:3]:
        listed = ", ".join(f"{c.name} ({c.right} of {c.tested})" for c in lowest)
        print(f"the lowest accuracy by class: {listed}")
    predict, report = commands(outcome.workdir)
    print(f"predict with it:\n  {predict}\nlook at the report:\n  {report}")


def _program() -> None:
    """What the command does, with what a program may do to its own process."""
    args = parse(None)
    absl_logging.set_verbosity(absl_logging.WARNING)  # Libraries say much at INFO.
    leave_out_noise()
    command_line.find_devices()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    run(args)


if __name__ == "__main__":
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    command_line.run(
        _program,
        interrupted="interrupted; the same command goes on from the newest checkpoint, "
        "if any",
        spell=spell,
    )
