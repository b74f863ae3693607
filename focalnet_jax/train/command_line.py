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
import sys
import traceback

# Grain's workers may leave a batch in shared memory when they end. Python's tracker of
# shared memory removes it, and would say so at the end of every run.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from focalnet_jax import train
from focalnet_jax.command_line import hide_idle_libtpu, use_utf8
from focalnet_jax.errors import SetupError, first_line, place_in_own_code
from focalnet_jax.output import is_lost, make_lasting
from focalnet_jax.paths import absolute_path
from focalnet_jax.train import recipes
from focalnet_jax.train.aot import compile_for
from focalnet_jax.train.processes import join_processes
from focalnet_jax.train.run.noise import FULL_DISK, leave_out_noise

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,  # A default would be read before `parse_flags` has seen the command line.
    "A recipe, by its name or its path; after a colon its variant. --config.FIELD=VALUE "
    f"changes a field. Default: {recipes.DEFAULT}.",
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
    flags.DEFINE_integer("num_processes", None, "How many make up the run.", 1),
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0 on.", 0),
)
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
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # Libraries say much at INFO.
    leave_out_noise()
    config, task = train.check_config(_CONFIG.value)
    if _COMPILE_FOR.value:
        jax.config.update("jax_platforms", "cpu")
        print(compile_for.compile_for(config, task, _COMPILE_FOR.value))
        sys.exit(1 if is_lost() else 0)
    hide_idle_libtpu()
    start_processes()
    workdir = absolute_path(_WORKDIR.value or default_workdir())
    if _MODE.value == "train":
        train.train(config, task, workdir)  # What it says lies in the workdir, too.
    else:
        train.evaluate(config, task, workdir)
        sys.exit(1 if is_lost() else 0)


def parse_flags(argv):
    """Parses the command line, after a look at the names of recipes and fields."""
    recipe = recipes.DEFAULT
    others = []
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("-config", "--config"):
            recipe = value if equals else next(arguments, "")
        else:
            others.append(argument)
    task = recipes.load_recipe(recipe).task
    for argument in others:
        if field := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            train.check_field_name(field[1], task)
            if field[1] == "task":
                raise SetupError("the recipe sets task, since its fields follow from it")
    # The fields of a recipe can be parsed only after it.
    argv[1:] = [f"--config={recipes.find_recipe(recipe)}", *others]
    return app.parse_flags_with_usage(argv)


def default_workdir() -> str:
    """`runs/base_tiny_srf` for `--config=configs/base.py:tiny_srf`."""
    config = config_flags.get_config_filename(flags.FLAGS["config"])
    path, _, variant = config.partition(":")
    return "_".join(["runs/" + pathlib.Path(path).stem, *variant.split(":")]).rstrip("_")


def start_processes() -> None:
    """Joins the processes of a run that flags or the environment name, or JAX finds."""
    given = {}
    for flag in _PROCESSES:
        variable = f"JAX_{flag.name.upper()}"
        value = os.environ.get(variable) if flag.value is None else str(flag.value)
        if value and flag.name != "coordinator_address":
            if not value.isdecimal():
                raise SetupError(f"{variable}={value} is no whole number")
            value = int(value)
        given[flag.name] = None if value == "" else value
    join_processes(**given, seconds=_WAIT.value)


def end(message: str | None = None) -> None:
    """Ends the program with a message, or else with the exception being handled."""
    try:
        if message is None:
            traceback.print_exc()
            if place := place_in_own_code(sys.exception()):
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
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # for --help
    try:
        app.run(main, flags_parser=parse_flags)
    except KeyboardInterrupt:
        end("interrupted; the same command goes on from the newest checkpoint, if any")
    except SetupError as error:
        end(f"error: {error}")
    except ImportError as error:
        if not re.search("fsspec|gcsfs|google.cloud", str(error)):
            end()
        end("error: addresses such as gs://bucket/run need: pip install '.[gcs]'")
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
