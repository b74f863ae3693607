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

from focalnet_jax.errors import SetupError, did_you_mean, shown
from focalnet_jax.fields import (
    Field,
    Fields,
    check_fields,
    check_is_no_group,
    full_name,
    make_config,
)
from focalnet_jax.paths import absolute_text
from focalnet_jax.tasks.base import Task
from focalnet_jax.tasks.registry import CLASSIFICATION, TASKS
from focalnet_jax.values import (
    MOST_STEPS,
    PATTERN,
    SEED,
    Number,
    Pair,
    Several,
    Text,
    Whole,
    ascending,
    distinct,
)

WEIGHT_DECAY_MASKS = ("nominal", "all", "none")
SCHEDULES = ("cosine", "poly")
SPLITS = ("test", "test_ema")  # what metrics of evaluations begin with

_EVERY_STEPS = Whole(1, MOST_STEPS)
_RATE = Number(0, 1e6)
# In float32, numbers nearer to 1 are 1: then an average would never move.
_DECAY = Number(0, 0.9999999)
_DEVICES = Whole(1, 2**20)
_AT_ONCE = 1024  # threads and processes
_MOST_EPOCHS = 2**31 - 1  # `train_batches` has no more

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
        SEED,
        decides_examples=True,
    ),
    "batch_size": Field(
        1024,
        "Examples in a step, over all devices.",
        Whole(1, 2**24),
        decides_examples=True,
    ),
    "num_epochs": Field(300.0, "The length of the run in epochs.", Number(0, 1e9)),
    "num_steps": Field(
        None, "If it is set, the length of the run in steps.", Whole(0, MOST_STEPS)
    ),
    "learning_rate": Field(
        1e-3,
        "The rate at the end of a linear warmup; `schedule` says what follows, and both "
        "change at every step. The three rates are for a batch of "
        "`learning_rate_batch_size` and scale with `batch_size`.",
        _RATE,
    ),
    "warmup_learning_rate": Field(1e-6, "The rate of the first step.", _RATE),
    "final_learning_rate": Field(1e-5, "The rate at the end.", _RATE),
    "learning_rate_batch_size": Field(
        1024,
        "The batch that the rates are for; 0 takes them as they are.",
        Whole(0, 2**24),
    ),
    "schedule": Field(
        "cosine",
        'How the rate falls to the final one: "cosine" as in timm; "poly" by a power of '
        "the share of the run that is left, as in mmcv, where the warmup multiplies the "
        "rate that is falling already.",
        Text(SCHEDULES),
    ),
    "schedule_power": Field(
        1.0, 'The power of "poly"; 1 is a straight line.', Number(0, 100)
    ),
    "warmup_epochs": Field(20.0, "The length of the warmup.", Number(0, 1e9)),
    "warmup_steps": Field(
        None, "If it is set, the length of the warmup in steps.", Whole(0, MOST_STEPS)
    ),
    "warmup_prefix": Field(
        False,
        "True has the schedule begin where the warmup ends, False at step 0, as in timm "
        "and mmcv.",
    ),
    "adam_b1": Field(0.9, "The decay of AdamW's first moment.", _DECAY),
    "adam_b2": Field(0.999, "The decay of AdamW's second moment.", _DECAY),
    "adam_eps": Field(1e-8, "AdamW's epsilon.", Number(0, 1e6)),
    "weight_decay": Field(
        0.05, "AdamW's weight decay; the learning rate scales it.", Number(0, 1e6)
    ),
    "weight_decay_mask": Field(
        "nominal",
        '"nominal" decays matrices and kernels; "all" decays every parameter; "none" '
        "decays no parameter, as the official code of classification does by mistake.",
        Text(WEIGHT_DECAY_MASKS),
    ),
    "no_weight_decay": Field(
        (),
        "Patterns of parameters that don't decay, whatever `weight_decay_mask` says: "
        "regular expressions that names begin with.",
        Several(PATTERN, check=distinct, note="such as ('.*norm',)"),
    ),
    "clip_norm": Field(
        5.0, "The greatest global norm of a gradient; 0 for no limit.", Number(0, 1e30)
    ),
    "ema_decay": Field(
        0.0,
        "The decay of an average of the parameters that is evaluated beside them, such "
        "as 0.9999; 0 for no average.",
        _DECAY,
    ),
    "max_nonfinite_steps": Field(
        0,
        "The number of steps that may have a loss, gradient or weights that are not "
        "finite. Such a step changes nothing. One step more stops the run.",
        Whole(0, MOST_STEPS),
    ),
    "accumulate_steps": Field(
        1,
        "The parts that a batch is taken in, one after the other: this takes less "
        "memory and makes the same step. BatchNorm alone sees the difference: it takes "
        "its statistics from each part.",
        Whole(1, 2**24),
    ),
    "layer_decay": Field(
        1.0, "The learning rate of a block over that of the next one.", Number(0, 1)
    ),
    "frozen": Field(
        (),
        "Patterns of parameters that stay as they are: regular expressions that names "
        'such as "layers_0/blocks_1/mlp/fc1/kernel" begin with.',
        Several(PATTERN, check=distinct, note="such as ('patch_embed', 'layers_[01]')"),
    ),
    "learning_rate_factors": Field(
        (),
        "Patterns of parameters, and by what their learning rates are multiplied, on "
        "top of `layer_decay`.",
        Several(Pair(PATTERN, _RATE), check=distinct, note="such as (('head', 10.0),)"),
    ),
    "init_from": Field(
        None,
        "Parameters to start from: a workdir, a checkpoint in it, or a converted "
        "directory.",
        Text(),
        absolute=absolute_text,
    ),
    "reset_head": Field(
        False, "True starts the head anew, and takes the rest from `init_from`."
    ),
    "resize_kernels": Field(
        False,
        "True zero-pads or crops the depthwise kernels of `init_from` around their "
        "centre where the model has others, as official recipes for dense prediction do.",
    ),
    "data.num_train_examples": Field(
        None,
        "If it is set, the training split must have exactly so many examples. "
        "`--compile_for` needs it, since it reads no data.",
        Whole(1, 2**48),
    ),
    "data.max_bad_records": Field(
        0,
        "The number of records that can't be read, and that each process may skip. One "
        "record more stops the run.",
        Whole(0, 1_000_000),  # The processes exchange a list of them whenever they log.
    ),
    "data.threads": Field(
        2,
        "Threads that decode, in this process or in each worker.",
        Whole(1, _AT_ONCE),
    ),
    "data.workers": Field(
        0,
        "Processes that decode; 0 decodes in the process that trains.",
        Whole(0, _AT_ONCE),
    ),
    "mesh.data": Field(
        -1,
        "Devices along `data`, over which the rows of a batch are split; -1 takes all "
        "that the other axes leave.",
        Whole(1, 2**20, besides=(-1,)),
    ),
    "mesh.fsdp": Field(
        1,
        "Devices along `fsdp`, over which rows, parameters and the optimiser's state "
        "are split.",
        _DEVICES,
    ),
    "mesh.spatial": Field(
        1, "Devices along `spatial`, over which the height of maps is split.", _DEVICES
    ),
    "checkpoint.every_steps": Field(
        1000, "Steps between checkpoints; the last step is always kept.", _EVERY_STEPS
    ),
    "checkpoint.every_minutes": Field(
        None,
        "If it is set, the next logged step after so many minutes is saved, too.",
        Number(0, 1e9),
    ),
    "checkpoint.keep": Field(
        2, "How many of the newest checkpoints stay.", Whole(1, MOST_STEPS)
    ),
    "checkpoint.best_metric": Field(
        None,
        "If it is set, the checkpoint that is best by this metric of evaluation is kept, "
        "too: `test/` or `test_ema/` and a metric of the task.",
        Text(),
    ),
    "evaluate_every_steps": Field(
        5000, "Steps between evaluations; there is one at the end.", _EVERY_STEPS
    ),
    "log_every_steps": Field(50, "Steps between lines of metrics.", _EVERY_STEPS),
    "profile_steps": Field(
        (),
        "The first and the last step of a trace for TensorBoard, such as `(10, 12)`.",
        Several(Whole(1, MOST_STEPS), least=2, most=2, or_none=True, check=ascending),
    ),
    "wandb_project": Field(
        None,
        "If it is set, a project of Weights & Biases gets the metrics, too.",
        Text(),
    ),
}


def all_fields(task: str) -> Fields:
    """The fields of a run and of its task.

    Raises:
      SetupError: there is no such task.
    """
    if not isinstance(task, str) or task not in TASKS:
        hint = did_you_mean(shown(task), TASKS)
        raise SetupError(
            f"task={shown(task)} is unknown{hint}. A task of your own is "
            "known when the module that adds it to TASKS has been imported"
        )
    own = TASKS[task].fields
    if common := RUN_FIELDS.keys() & own.keys():
        raise ValueError(f"task {task!r} has fields of the run: {sorted(common)}")
    return {**RUN_FIELDS, **own}


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
    if not isinstance(config, (ConfigDict, FrozenConfigDict)):
        raise SetupError(
            f"a configuration is made by default_config(), and {shown(config)} is none"
        )
    config = check_fields(config, all_fields(config.get("task", CLASSIFICATION)))
    if config.reset_head and not config.init_from:
        raise SetupError("reset_head=True needs init_from, whose head is left out")
    if config.resize_kernels and not config.init_from:
        raise SetupError("resize_kernels=True needs init_from, whose kernels it changes")
    if config.batch_size % config.accumulate_steps:
        raise SetupError(
            f"accumulate_steps={config.accumulate_steps} doesn't divide "
            f"batch_size={config.batch_size}; the nearest that does is "
            f"{_nearest_divisor(config.batch_size, config.accumulate_steps)}"
        )
    task = TASKS[config.task].make(config)
    if best := config.checkpoint.best_metric:
        allowed = [f"{split}/{name}" for split in SPLITS for name in task.metrics]
        if best not in allowed:
            raise SetupError(
                f"checkpoint.best_metric={shown(best)} is unknown; there are "
                f"{', '.join(allowed)}"
            )
        if best.startswith("test_ema/") and not config.ema_decay:
            raise SetupError(f"checkpoint.best_metric={best!r} needs ema_decay above 0")
    return config, task


def check_field_name(name: str, task: str = CLASSIFICATION) -> None:
    """Raises SetupError unless the dotted `name` is a field of the configuration."""
    fields = all_fields(task)
    if not name:
        raise SetupError("the field has no name: it is --config.FIELD=VALUE")
    check_is_no_group(name, fields)
    if name not in fields:
        raise SetupError(f"the config has no field {name}{did_you_mean(name, fields)}")


def field_of(config: ConfigDict) -> Callable[[str], str]:
    """How a user spells arguments of functions: as fields of this configuration."""
    return functools.partial(full_name, fields=all_fields(config.task))


def total_steps(config: ConfigDict, num_examples: int) -> int:
    """The number of steps of the whole run.

    Raises:
      SetupError: steps or epochs that nothing here can count.
    """
    steps = config.num_steps
    if steps is None:
        steps = steps_of_epochs(config, "num_epochs", num_examples)
    epochs = steps * config.batch_size / num_examples
    if epochs > _MOST_EPOCHS:
        raise SetupError(
            f"num_steps={steps} of batch_size={config.batch_size} are {epochs:,.0f} "
            f"epochs of {num_examples:,} examples: {_MOST_EPOCHS:,} at most"
        )
    return steps


def warmup_steps(config: ConfigDict, num_examples: int) -> int:
    """The number of steps of the warmup; raises as `total_steps`."""
    if config.warmup_steps is not None:
        return config.warmup_steps
    return steps_of_epochs(config, "warmup_epochs", num_examples)


def steps_of_epochs(config: ConfigDict, field: str, num_examples: int) -> int:
    """Steps that see so many epochs of `num_examples` examples, rounded up.

    Raises:
      SetupError: there are more steps than can be counted.
    """
    epochs = getattr(config, field)
    steps = math.ceil(epochs * num_examples / config.batch_size)
    if steps > MOST_STEPS:
        raise SetupError(
            f"{field}={epochs:g} is {steps:,} steps, with {num_examples:,} examples and "
            f"batch_size={config.batch_size}: at most {MOST_STEPS:,} can be counted"
        )
    return steps


def _nearest_divisor(number: int, near: int) -> int:
    divisors = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors += [number // d for d in divisors]
    return min(divisors, key=lambda d: abs(d - near))
