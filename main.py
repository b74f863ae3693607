"""Trains or evaluates a FocalNet.

    python main.py                                     the embedded default
    python main.py --config=configs/base.py            ImageNet-1K
    python main.py --config=configs/base.py:tiny_srf --config.batch_size=256
    python main.py --mode=eval                         the newest checkpoint

The same command on every host of a TPU pod slice starts one run on all of them.
"""

import os
import pathlib
import sys

import jax
from absl import app, flags
from etils import epath
from ml_collections import config_flags

from focalnet_jax.errors import SetupError
from focalnet_jax.train import check_config, evaluate, train

_CONFIGS = pathlib.Path(__file__).parent / "configs"

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(_CONFIGS / "digits.py"),
    "A recipe; after a colon its variant. --config.FIELD=VALUE changes a field.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run lies; a run that lies there goes on. Default: "
    "runs/<config>."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}: flags begin with --")
    config = check_config(_CONFIG.value)
    start_processes()
    workdir = epath.Path(_WORKDIR.value or default_workdir()).expanduser().resolve()
    {"train": train, "eval": evaluate}[_MODE.value](config, workdir)


def default_workdir() -> str:
    """`runs/base_tiny_srf` for `--config=configs/base.py:tiny_srf`."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]), "", ""
    return os.path.join("runs", pathlib.Path(path).stem)


def start_processes() -> None:
    """Joins the processes of a run, where there are several."""
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address:
        jax.distributed.initialize(
            address,
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )


if __name__ == "__main__":
    try:
        app.run(main)
    except SetupError as error:
        sys.exit(f"error: {error}")
