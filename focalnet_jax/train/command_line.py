"""The program that trains and evaluates: its flags, its start and how it ends.

    python main.py                                     handwritten digits, the default
    python main.py --config=configs/base.py            ImageNet-1K
    python main.py --config=configs/base.py:tiny_srf --config.batch_size=256
    python main.py --mode=eval                         the newest checkpoint
    python main.py --config=configs/base.py --compile_for=v5e:16x16     without a TPU

Where the package is installed, `python -m focalnet_jax.train --config=base` does the same
outside a checkout. The same command on every host of a TPU pod slice starts one run on
all of them.
"""

import errno
import os
import pathlib
import re
import shlex
import sys
import traceback
from typing import Any

# Grain's workers may leave a batch in shared memory when they end. Python's tracker of
# shared memory removes it, and would say so at the end of every run.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax import train
from focalnet_jax.command_line import (
    as_called,
    find_devices,
    hide_idle_libtpu,
    use_utf8,
)
from focalnet_jax.errors import SetupError, first_line, place_in_own_code
from focalnet_jax.output import is_lost, make_lasting
from focalnet_jax.paths import absolute_path, from_here
from focalnet_jax.tasks.base import Task
from focalnet_jax.train import recipes
from focalnet_jax.train.aot import compile_for
from focalnet_jax.train.freed_memory import keep_freed_memory
from focalnet_jax.train.overrides import apply_overrides, split_overrides
from focalnet_jax.train.processes import join_processes
from focalnet_jax.train.run.noise import FULL_DISK, leave_out_noise
from focalnet_jax.values import NotAllowed, Whole
from focalnet_jax.weights.description import CLASSIFICATION

_CONFIG = flags.DEFINE_string(
    "config",
    recipes.DEFAULT,
    "A recipe, by its name or its path; after a colon its variant. --config.FIELD=VALUE "
    "changes a field.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run lies; a run that lies there goes on. Default: runs/<config>.",
)
_COMPILE_FOR = flags.DEFINE_string(
    "compile_for",
    None,
    "A TPU slice, such as v5e:16x16: compiles the training step for it, says whether it "
    "fits and how fast it might be, and does no more. Needs libtpu, and no TPU.",
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
# TPU pod slices, GKE and Slurm need none of these. Each can be an environment's variable,
# too, such as JAX_PROCESS_ID.
_PROCESSES = (
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process."),
    flags.DEFINE_string("num_processes", None, "How many make up the run."),
    flags.DEFINE_string("process_id", None, "Which one this is, from 0 on."),
)
_MOST_PROCESSES = 2**20
_PROCESS_NUMBERS = {
    "num_processes": Whole(1, _MOST_PROCESSES),
    "process_id": Whole(0, _MOST_PROCESSES - 1),
}
_WAIT = flags.DEFINE_integer(
    "wait_for_processes", 300, "For how many seconds to wait for the others.", 1
)
# What whoever started the run can mend about files.
_OF_FILES = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EIO,
    errno.ESTALE,
    errno.ENAMETOOLONG,
}


def main(argv):
    recipe = recipes.load_recipe(_CONFIG.value)
    overrides, _ = split_overrides(argv[1:])
    for remark in apply_overrides(recipe, overrides):
        print(remark, file=sys.stderr)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Libraries say much at INFO.
    leave_out_noise()
    config, task = train.check_config(recipe)
    if _WORKDIR.value == "":
        raise SetupError("--workdir= names no directory: leave it out for runs/RECIPE")
    if _COMPILE_FOR.value is not None:
        if _MODE.value != "train":
            raise SetupError(
                "--compile_for compiles the training step: leave out "
                f"--mode={_MODE.value}"
            )
        jax.config.update("jax_platforms", "cpu")
        print(compile_for.compile_for(config, task, _COMPILE_FOR.value))
        sys.exit(1 if is_lost() else 0)
    hide_idle_libtpu()
    start_processes()
    find_devices()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    workdir = absolute_path(_WORKDIR.value or default_workdir())
    if _MODE.value == "train":
        # What it says lies in the workdir, too.
        train.train(config, task, workdir, what_next=_what_next(config, task, workdir))
    else:
        train.evaluate(config, task, workdir)
        sys.exit(1 if is_lost() else 0)


def parse_flags(argv):
    """Parses all flags but `--config.FIELD`, which it returns for `main` to read.

    What values a field takes is known only after the recipe.
    """
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=False)
        _, others = split_overrides(argv)
        unexpected = flags.FLAGS(others)[1:]
    except SystemExit:  # after --help, for which absl has the code 1
        sys.exit(1 if is_lost() else 0)
    except flags.Error as error:
        raise SetupError(first_line(error)) from error
    if unexpected:
        raise SetupError(f"unexpected arguments {unexpected}: flags begin with --")
    return argv


def default_workdir() -> str:
    """`runs/base_tiny_srf` for `--config=configs/base.py:tiny_srf`."""
    path, _, variant = recipes.find_recipe(_CONFIG.value).partition(":")
    return "_".join(["runs/" + pathlib.Path(path).stem, *variant.split(":")]).rstrip("_")


def _what_next(config: ConfigDict, task: Task, workdir: epath.Path) -> list[str]:
    """The commands that use what a run has trained, a line for each."""
    program = as_called("python -m focalnet_jax.train")
    if pathlib.Path(sys.argv[0]).name != "__main__.py":
        program = f"python {sys.argv[0]}"
    lines = [
        f"evaluate it again:\n  {program} {shlex.join([*sys.argv[1:], '--mode=eval'])}"
    ]
    # Only the program that defines another operator can make a net with it.
    if task.name == CLASSIFICATION and config.model.modulation in (None, "focal"):
        place = shlex.quote(from_here(workdir))
        name = shlex.quote(f"{workdir.name}.onnx")
        predict = f"python -m focalnet_jax.predict IMAGE --weights={place}"
        export = f"python -m focalnet_jax.export --weights={place} {name}"
        lines = [
            f"predict with it:\n  {as_called(predict)}",
            *lines,
            f"take it elsewhere:\n  {as_called(export)}",
        ]
    return lines


def start_processes() -> None:
    """Joins the processes of a run that flags or the environment name, or JAX finds."""
    given: dict[str, Any] = {}
    for flag in _PROCESSES:
        spelling, value = f"--{flag.name}", flag.value
        if value is None:
            spelling = f"JAX_{flag.name.upper()}"
            value = os.environ.get(spelling) or None
        if value is not None and flag.name in _PROCESS_NUMBERS:
            try:
                value = _PROCESS_NUMBERS[flag.name].read(value)
            except NotAllowed as problem:
                raise SetupError(f"{spelling}={value} {problem}") from problem
        given[flag.name] = value
    join_processes(**given, seconds=_WAIT.value)


def end(message: str | None = None) -> None:
    """Ends the program with a message, or else with the exception being handled."""
    try:
        if message is None:
            traceback.print_exc()
            error = sys.exception()
            if error and (place := place_in_own_code(error)):
                print(f"error: in {place}", file=sys.stderr)
        else:
            print(message, file=sys.stderr)
        sys.stderr.flush()
        sys.stdout.flush()
    finally:
        # An orderly exit would wait for the other processes, which wait for this one's
        # part of a computation. When this one is gone they end, too. And a store with
        # work half done would go on talking after the message.
        os._exit(1)


def run() -> None:
    """Runs the program, and ends it with one line where a person can mend what failed."""
    use_utf8()
    make_lasting()
    logging.get_absl_handler().python_handler.setStream(sys.stderr)
    # For --help, which absl makes of the program's docstring and its own flags.
    program = sys.modules["__main__"]
    program.__doc__ = as_called(program.__doc__ or "")
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        end("interrupted; the same command goes on from the newest checkpoint, if any")
    except SetupError as error:
        end(f"error: {as_called(str(error))}")
    except ImportError as error:
        if not re.search("fsspec|gcsfs|google.cloud", str(error)):
            end()
        end(
            "error: addresses such as gs://bucket/run need more: "
            "pip install 'focalnet_jax[gcs]'"
        )
    except jax.errors.JaxRuntimeError as error:
        if not re.search("Gloo|UNAVAILABLE|DEADLINE_EXCEEDED", str(error)):
            end()
        end(
            "error: this process has lost touch with the others: "
            f"{first_line(error)}\nMost likely one of them has ended, and its "
            "own output says why. The same command, on every host, goes on from the "
            "newest checkpoint"
        )
    except OSError as error:
        if error.errno in FULL_DISK:
            end(
                f"error: {error.filename or 'a disk'}: {error.strerror}; make room, and "
                "the same command goes on from the newest checkpoint"
            )
        if error.errno not in _OF_FILES or not error.filename:
            end()
        end(f"error: {error.filename}: {error.strerror}")
    except RuntimeError as error:
        # JAX has no class of its own for devices that are asked for and not there.
        if "nable to initialize backend" not in str(error):
            end()
        end(f"error: {first_line(error)}")
    except Exception:
        end()
