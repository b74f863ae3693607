"""The fields of a run, whatever its task; and the checks at the door.

A recipe in `configs/` starts from `default_config()` and sets what it is about. The
command line sets scalars: `--config.batch_size=256`. Nothing in a recipe copies one
field into another, since the command line comes later: what follows from several fields
(the number of steps, the scaled learning rate) is computed where it is used.
"""

import functools
import math
from collections.abc import Callable

from ml_collections import ConfigDict, FrozenConfigDict

from focalnet_jax.errors import SetupError, did_you_mean
from focalnet_jax.fields import (
    Field,
    Fields,
    at_least,
    below,
    canonical_values,
    check_fields,
    every,
    full_name,
    make_config,
    numbers,
    one_of,
    patterns,
)
from focalnet_jax.tasks.base import Task
from focalnet_jax.tasks.registry import CLASSIFICATION, TASKS

WEIGHT_DECAY_MASKS = ("nominal", "none")
SPLITS = ("test", "test_ema")  # what metrics of evaluations begin with


def _pairs(value) -> str | None:
    for pair in value:
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        if not is_pair or not isinstance(pair[1], (int, float)):
            return "is not of pairs of a pattern and a number, such as (('head', 10.0),)"
    return patterns([pattern for pattern, _ in value])


def _steps(value) -> str | None:
    if not value:
        return None
    if problem := numbers(2)(value):
        return problem
    return None if 1 <= value[0] <= value[1] else "is no range of steps"


def _mesh_size(value) -> str | None:
    return None if value >= 1 or value == -1 else "is neither -1 nor above 0"


RUN_FIELDS: Fields = {
    "task": Field(
        CLASSIFICATION,
        "The name of the task, which decides what other fields there are. A recipe "
        "chooses it by `default_config(task)`.",
        decides_examples=True,
    ),
    "seed": Field(
        0,
        "The seed of initialisation, of the order of examples, of augmentation, dropout "
        "and stochastic depth.",
        at_least(0),
        decides_examples=True,
    ),
    "batch_size": Field(
        1024,
        "Examples in a step, over all devices.",
        at_least(1),
        decides_examples=True,
    ),
    "num_epochs": Field(300.0, "The length of the run in epochs.", at_least(0)),
    "num_steps": Field(
        None, "If it is set, the length of the run in steps.", at_least(0), int
    ),
    "learning_rate": Field(
        1e-3,
        "The rate at the end of a linear warmup; a cosine follows, and both change at "
        "every step. The three rates are for a batch of `learning_rate_batch_size` and "
        "scale with `batch_size`.",
        at_least(0),
    ),
    "warmup_learning_rate": Field(1e-6, "The rate of the first step.", at_least(0)),
    "final_learning_rate": Field(1e-5, "The rate at the end.", at_least(0)),
    "learning_rate_batch_size": Field(
        1024, "The batch that the rates are for; 0 takes them as they are.", at_least(0)
    ),
    "warmup_epochs": Field(20.0, "The length of the warmup.", at_least(0)),
    "warmup_prefix": Field(
        False,
        "True has the cosine begin where the warmup ends, False at step 0, as in timm.",
    ),
    "adam_b1": Field(
        0.9, "The decay of AdamW's first moment.", every(at_least(0), below(1))
    ),
    "adam_b2": Field(
        0.999, "The decay of AdamW's second moment.", every(at_least(0), below(1))
    ),
    "adam_eps": Field(1e-8, "AdamW's epsilon.", at_least(0)),
    "weight_decay": Field(
        0.05, "AdamW's weight decay; the learning rate scales it.", at_least(0)
    ),
    "weight_decay_mask": Field(
        "nominal",
        '"nominal" decays matrices and kernels; "none" decays no parameter, as the '
        "official code does by mistake.",
        one_of(WEIGHT_DECAY_MASKS),
    ),
    "clip_norm": Field(
        5.0, "The greatest global norm of a gradient; 0 for no limit.", at_least(0)
    ),
    "ema_decay": Field(
        0.0,
        "The decay of an average of the parameters that is evaluated beside them, such "
        "as 0.9999; 0 for no average.",
        every(at_least(0), below(1)),
    ),
    "max_nonfinite_steps": Field(
        0,
        "The number of steps that may have a loss, gradient or weights that are not "
        "finite. Such a step changes nothing. One step more stops the run.",
        at_least(0),
    ),
    "accumulate_steps": Field(
        1,
        "The parts that a batch is taken in, one after the other: this takes less "
        "memory and makes the same step. BatchNorm alone sees the difference: it takes "
        "its statistics from each part.",
        at_least(1),
    ),
    "layer_decay": Field(
        1.0, "The learning rate of a block over that of the next one.", at_least(0)
    ),
    "frozen": Field(
        (),
        "Patterns of parameters that stay as they are: regular expressions that names "
        'such as "layers_0/blocks_1/mlp/fc1/kernel" begin with. Example: '
        '`("patch_embed", "layers_[01]")`.',
        patterns,
    ),
    "learning_rate_factors": Field(
        (),
        "Patterns of parameters, and by what their learning rates are multiplied, on "
        'top of `layer_decay`. Example: `(("head", 10.0),)`.',
        _pairs,
    ),
    "init_from": Field(
        None,
        "Parameters to start from: a workdir, a checkpoint in it, or a converted "
        "directory.",
        kind=str,
    ),
    "reset_head": Field(
        False, "True starts the head anew, and takes the rest from `init_from`."
    ),
    "data.num_train_examples": Field(
        None,
        "If it is set, the training split must have exactly so many examples. "
        "`--compile_for` needs it, since it reads no data.",
        at_least(1),
        int,
    ),
    "data.max_bad_records": Field(
        0,
        "The number of records that can't be read, and that each process may skip. One "
        "record more stops the run.",
        at_least(0),
    ),
    "data.threads": Field(
        2, "Threads that decode, in this process or in each worker.", at_least(1)
    ),
    "data.workers": Field(
        0, "Processes that decode; 0 decodes in the process that trains.", at_least(0)
    ),
    "mesh.data": Field(
        -1,
        "Devices along `data`, over which the rows of a batch are split; -1 takes all "
        "that the other axes leave.",
        _mesh_size,
    ),
    "mesh.fsdp": Field(
        1,
        "Devices along `fsdp`, over which rows, parameters and the optimiser's state "
        "are split.",
        at_least(1),
    ),
    "mesh.spatial": Field(
        1, "Devices along `spatial`, over which the height of maps is split.", at_least(1)
    ),
    "checkpoint.every_steps": Field(
        1000, "Steps between checkpoints; the last step is always kept.", at_least(1)
    ),
    "checkpoint.every_minutes": Field(
        None,
        "If it is set, the next logged step after so many minutes is saved, too.",
        at_least(0),
        float,
    ),
    "checkpoint.keep": Field(2, "How many of the newest checkpoints stay.", at_least(1)),
    "checkpoint.best_metric": Field(
        None,
        "If it is set, the checkpoint that is best by this metric of evaluation is kept, "
        "too: `test/` or `test_ema/` and a metric of the task.",
        kind=str,
    ),
    "evaluate_every_steps": Field(
        5000, "Steps between evaluations; there is one at the end.", at_least(1)
    ),
    "log_every_steps": Field(50, "Steps between lines of metrics.", at_least(1)),
    "profile_steps": Field(
        (),
        "The first and the last step of a trace for TensorBoard: `(10, 12)`.",
        _steps,
    ),
    "wandb_project": Field(
        None,
        "If it is set, a project of Weights & Biases gets the metrics, too.",
        kind=str,
    ),
}


def all_fields(task: str) -> Fields:
    """The fields of a run and of its task.

    Raises:
      SetupError: there is no such task.
    """
    if task not in TASKS:
        raise SetupError(
            f"task={task!r} is unknown{did_you_mean(task, TASKS)}. A task of your own is "
            "known when the module that adds it to TASKS has been imported"
        )
    own = TASKS[task].fields
    if common := RUN_FIELDS.keys() & own.keys():
        raise ValueError(f"task {task!r} has fields of the run: {sorted(common)}")
    return RUN_FIELDS | own


def default_config(task: str = CLASSIFICATION) -> ConfigDict:
    """A new configuration of a run; fields can be set in it, but not added.

    Raises:
      SetupError: there is no such task.
    """
    config = make_config(all_fields(task))
    config.task = task
    return config


def check_config(config: ConfigDict) -> tuple[FrozenConfigDict, Task]:
    """Checks what can be checked before data or devices are touched.

    Returns:
      the configuration, frozen, and the task that it describes.

    Raises:
      SetupError: naming the field, what was given and what is allowed.
    """
    fields = all_fields(config.get("task", CLASSIFICATION))
    check_fields(config, fields)
    config = FrozenConfigDict(canonical_values(config, fields))
    if config.reset_head and not config.init_from:
        raise SetupError("reset_head=True needs init_from, whose head is left out")
    task = TASKS[config.task].make(config)
    if best := config.checkpoint.best_metric:
        allowed = [f"{split}/{name}" for split in SPLITS for name in task.metrics]
        if problem := one_of(allowed)(best):
            raise SetupError(f"checkpoint.best_metric={best!r} {problem}")
        if best.startswith("test_ema/") and not config.ema_decay:
            raise SetupError(f"checkpoint.best_metric={best!r} needs ema_decay above 0")
    return config, task


def check_field_name(name: str, task: str = CLASSIFICATION) -> None:
    """Raises SetupError unless the dotted `name` is a field of the configuration."""
    fields = all_fields(task)
    if name not in fields:
        raise SetupError(f"the config has no field {name}{did_you_mean(name, fields)}")


def field_of(config: ConfigDict) -> Callable[[str], str]:
    """How a user spells arguments of functions: as fields of this configuration."""
    return functools.partial(full_name, fields=all_fields(config.task))


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """The number of steps of the whole run."""
    if config.num_steps is not None:
        return config.num_steps
    return steps_of_epochs(config, config.num_epochs, num_examples)


def steps_of_epochs(config: ConfigDict, epochs: float, num_examples: int) -> int:
    """Steps that see `epochs * num_examples` examples, rounded up."""
    return math.ceil(epochs * num_examples / config.batch_size)
