"""Every field against odd values: refused in one line before anything starts, or meant.

The values are made from what the fields say that they take. `pytest -s` prints how many
were tried and how they ended.
"""

import collections
import contextlib
import io
import json
import math
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict, FrozenConfigDict, config_dict
from odd_values import example, objects_for, texts_for

from focalnet_jax.errors import SetupError
from focalnet_jax.fields import converted, flatten, read_field, unflatten
from focalnet_jax.tasks.registry import TASKS
from focalnet_jax.train import check_config, command_line, default_config, loop
from focalnet_jax.train.config import all_fields, steps_of_epochs, total_steps
from focalnet_jax.train.overrides import Override, apply_overrides, split_overrides
from focalnet_jax.train.run.workdir import changed_fields

FIELDS = all_fields("classification")
LONGEST_LINE = 600


def is_one_line(message):
    return "\n" not in message and len(message) <= LONGEST_LINE


def same(given, kept):
    """Whether a value is kept as it was given, but for its type."""
    if isinstance(kept, tuple):
        given = [given] if isinstance(given, str) else [*given]
        return len(given) == len(kept) and all(map(same, given, kept))
    if getattr(given, "shape", ()) or isinstance(given, (tuple, list)):
        return tuple(given) == (kept, kept)  # a square of which both sides are given
    return kept == (float(given) if isinstance(kept, float) else given)


def is_of(kind, value):
    """Exactly of that type; `object` stands for several."""
    return kind in (object, type(value))


def print_ends(kind, counts):
    refused, kept = counts["refused"], counts["kept"]
    print(f"{kind}: {refused:,} refused in one line, {kept:,} kept as they are meant")


def config_with(config, name, value):
    """A copy that no longer looks after types, with one field set."""
    return ConfigDict(unflatten(flatten(config.to_dict()) | {name: value}), False)


def outcome(function, *arguments):
    """What it returns, and the message with which it refuses."""
    try:
        return function(*arguments), None
    except SetupError as error:
        return None, str(error)


def test_values_in_recipes(tiny_config):
    """Of whatever type; what is kept survives `config.json`.

    Of values that are kept as the same one, one goes through all checks; of those that
    the field itself refuses, the first.
    """
    counts = collections.Counter()
    for name, field in FIELDS.items():
        checked = set()
        for value in objects_for(field.takes):
            kept, message = outcome(converted, name, field, value)
            if repr(kept) not in checked:
                checked.add(repr(kept))
                config = config_with(tiny_config, name, value)
                run, message = outcome(check_config, config)
                assert not run or flatten(run[0].to_dict())[name] == kept
            counts["kept" if message is None else "refused"] += 1
            if message is not None:
                assert is_one_line(message), (name, value, message)
            elif kept is None:
                assert field.may_be_unset
                assert value is None or value == "", (name, value)
            else:
                assert is_of(field.takes.kind, kept), (name, value)
                # A recipe may spell a size as on the command line.
                assert same(value, kept) or field.read(value) == kept, (name, value)
                stored = json.loads(json.dumps(kept, allow_nan=False))
                assert same(stored, kept)
                assert field.convert(stored) == field.convert(kept) == kept
    print_ends("in recipes", counts)
    assert min(counts.values()) > 100


def test_values_on_the_command_line():
    """As text; what is read is what the text says."""
    counts = collections.Counter()
    for name, field in FIELDS.items():
        for text in (*texts_for(field.takes), True, False):
            value, message = outcome(read_field, name, field, text)
            counts["kept" if message is None else "refused"] += 1
            if message is not None:
                assert is_one_line(message), (name, text, message)
                assert message.startswith(name)
            elif value is None:
                assert field.may_be_unset
                assert text in ("", "None")
            else:
                assert field.convert(value) == value
                assert is_of(field.takes.kind, value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                assert float(text.replace("0x10", "16")) == value, (name, text)
    print_ends("on the command line", counts)
    assert min(counts.values()) > 100


def test_every_default_is_allowed():
    for task in TASKS:
        for name, field in all_fields(task).items():
            assert field.convert(field.default) == field.default, name
            if field.may_be_unset:
                assert field.convert(example(field.takes)) is not None, name


def test_a_seed_is_the_seed_it_says():
    """All of the range makes keys of its own; beyond it, JAX would cut off bits."""
    most = FIELDS["seed"].takes.most
    for seed in (0, 1, 2**31 - 1, 2**31, most):
        assert int(jax.random.key_data(jax.random.key(seed))[-1]) == seed
    with pytest.raises(SetupError, match="from 0 to 4,294,967,295; the nearest is"):
        apply_overrides(default_config(), [Override("seed", str(most + 1))])


@pytest.mark.parametrize("content", ["required", "cyclic", "dict", "group", "frozen"])
def test_configurations_of_other_kinds(content, tiny_config):
    if content == "required":
        tiny_config.data["name"] = config_dict.required_placeholder(str)
        config, message = tiny_config, "the config lacks a value"
    elif content == "dict":
        config, message = tiny_config.to_dict(), "made by default_config"
    elif content == "group":
        config, message = tiny_config, "data is a group of fields"
        config.data = None
    else:
        reference = tiny_config.get_ref("batch_size")
        tiny_config.learning_rate_batch_size = reference
        assert check_config(tiny_config)[0].learning_rate_batch_size == 16
        config = check_config(tiny_config)[0]
        assert isinstance(config, FrozenConfigDict)
        assert check_config(config)[0] == config
        return
    with pytest.raises(SetupError, match=message):
        check_config(config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(accumulate_steps=3), "doesn't divide batch_size=16; the nearest that does"),
        (dict(batch_size=2000), "batch_size=2000 is more than the 1,437 examples"),
        (dict(num_steps=None, num_epochs=1e9), r"num_epochs=1e\+09 is .* steps, with"),
        (dict(warmup_epochs=1e9), r"warmup_epochs=1e\+09 is .* at most 2,147,483,647"),
        (dict(frozen=(".*",)), "frozen=.* leaves no parameter to train"),
        ({"model.embed_dim": 65536, "model.num_classes": 10**9}, "parameters: 1e"),
        ({"model.embed_dim": 32768}, "take .* GB on each device, which has"),
        (
            {
                "model.depths": (1000, 1),
                "model.focal_levels": (1, 1),
                "model.focal_windows": (3, 3),
            },
            "are 1,001 blocks: 1,000 at most",
        ),
        ({"data.image_size": 16384, "batch_size": 1400}, "takes .* GB, and it has"),
        ({"mesh.spatial": 7}, "don't make up the 8 devices"),
        ({"mesh.data": 2**20, "mesh.fsdp": 2**20}, "don't make up the 8 devices"),
        ({"model.dtype": "float64"}, "model.dtype='float64' needs JAX_ENABLE_X64=1"),
    ],
)
def test_values_that_make_no_sense_together(fields, message, tiny_config, tmp_path):
    """They end before anything is compiled, and nothing is written."""
    config = tiny_config
    for name, value in fields.items():
        config = config_with(config, name, value)
    with pytest.raises(SetupError, match=message) as raised:
        reach(config, tmp_path / "run")
    assert is_one_line(str(raised.value))
    assert not (tmp_path / "run").exists()


def test_steps_are_counted_exactly():
    config = ConfigDict(dict(num_steps=None, num_epochs=0.1, batch_size=1))
    assert total_steps(config, 1000) == 100
    config.num_steps = 2**31 - 1
    assert total_steps(config, 1000) == 2**31 - 1
    config.batch_size = 2**24
    with pytest.raises(SetupError, match="num_steps=2147483647 of batch_size=16777216"):
        total_steps(config, 10)
    assert steps_of_epochs(config, "num_epochs", 2**25) == 1


def test_runs_that_go_on_compare_what_is_meant(tiny_config, tmp_path):
    """1 and 1.0 are one value, and so are a list and a tuple."""
    stored, _ = check_config(tiny_config)
    (tmp_path / "config.json").write_text(json.dumps(stored.to_dict()))
    again = tiny_config
    for name, value in flatten(tiny_config.to_dict()).items():
        if isinstance(value, tuple):
            again = config_with(again, name, [*value])
        elif isinstance(value, float) and value.is_integer():
            again = config_with(again, name, int(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            again = config_with(again, name, np.int64(value))
    assert changed_fields(tmp_path, check_config(again)[0], FIELDS) == []


def test_overrides_of_all_spellings():
    line = "main.py --config.seed 3 --noconfig.data.flip --config.mesh.data -1"
    line += " --mode eval -config.frozen=a=b --config.reset_head"
    overrides, others = split_overrides([*line.split(), "--config.log_every_steps=1e3"])
    assert others == ["main.py", "--mode", "eval"]
    config = default_config()
    assert apply_overrides(config, overrides) == []
    assert (config.seed, config.data.flip, config.mesh.data) == (3, False, -1)
    assert (config.frozen, config.reset_head) == (("a=b",), True)
    assert config.log_every_steps == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--config.seed", "seed needs a value: a whole number"),
        ("--noconfig.seed", "seed needs a value: a whole number"),
        ("--noconfig.data.flip=1", "--noconfig.data.flip takes no value, given '1'"),
        ("--config.data=1", "data is a group of fields, which are set one by one"),
        ("--config.=1", "the field has no name: it is --config.FIELD=VALUE"),
        ("--config.seed.x=1", "has no field seed.x; did you mean 'seed'"),
        ("--config.task=other", "the recipe sets task"),
    ],
)
def test_overrides_that_cannot_be(arguments, message):
    with pytest.raises(SetupError, match=message):
        apply_overrides(default_config(), split_overrides(arguments.split())[0])


def test_of_several_values_the_last_counts():
    config = default_config()
    given = [Override("seed", "1"), Override("seed", "2"), Override("num_steps", "5")]
    [remark] = apply_overrides(config, [*given, Override("num_steps", "5")])
    assert (config.seed, config.num_steps) == (2, 5)
    assert remark == "--config.seed is given as 1, 2: the last counts"


def test_none_unsets_what_may_be_unset():
    config = default_config()
    config.data.rand_augment = "rand-m9"
    config.num_steps = 3
    given = [Override("data.rand_augment", ""), Override("num_steps", "None")]
    apply_overrides(config, given)
    assert config.data.rand_augment is None
    assert config.num_steps is None
    with pytest.raises(SetupError, match="seed=None is not a whole number"):
        apply_overrides(config, [Override("seed", "None")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--mode=evl", "--mode=evl: value should be one of <train|eval>"),
        ("--mode", "Missing value for flag --mode"),
        ("--mod=eval", "Unknown command line flag 'mod'. Did you mean: mode"),
        ("eval", "unexpected arguments ['eval']: flags begin with --"),
        ("--flagfile=none", "none"),
        ("--verbosity=x", "--verbosity=x"),
    ],
)
def test_flags_that_cannot_be(arguments, message):
    with flagsaver.flagsaver(), pytest.raises(SetupError) as raised:
        command_line.parse_flags(["main.py", *arguments.split()])
    assert message in str(raised.value)
    assert is_one_line(str(raised.value))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(num_processes="0"), "--num_processes=0 is not a whole number from 1"),
        (dict(num_processes="x"), "--num_processes=x is not a whole number"),
        (dict(process_id="-1"), "--process_id=-1 is not a whole number from 0"),
        (dict(process_id="1e30"), "--process_id=1e30 is not a whole number"),
        (dict(process_id="2", num_processes="2"), "process_id=2 is too large for"),
    ],
)
def test_processes_that_cannot_be(given, message):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(**given), pytest.raises(SetupError, match=message):
        command_line.start_processes()


# --- Up to the first compilation -----------------------------------------------


class Reached(Exception):
    """A run has come to where it would compile."""


# No part of these goes into the step.
OUTSIDE_THE_STEP = {name for name in FIELDS if name.startswith(("data.", "checkpoint."))}
OUTSIDE_THE_STEP |= {name for name in FIELDS if name.endswith("_every_steps")}
OUTSIDE_THE_STEP |= {"init_from", "profile_steps", "wandb_project"}
OUTSIDE_THE_STEP -= {"data.image_size", "data.mean", "data.std"}


def stop_at_start(config, task, workdir, program, checkpoints, **_):
    """In place of `start`: looks at the rates of the whole run."""
    for step in (0, 1, 1000, 2**31 - 2):
        assert math.isfinite(program.schedule(step))
    raise Reached(program)


def no_checkpoints(*_):
    """In place of `_checkpoints`, which would make a directory."""
    none = types.SimpleNamespace(newest_step=None, check_room=lambda state: None)
    return contextlib.nullcontext(none)


def reach(config, workdir):
    """Sets a run up as far as `start`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "start", stop_at_start)
        patch.setattr(loop, "_checkpoints", no_checkpoints)
        loop.train(*check_config(config), command_line.absolute_path(workdir))


@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in FIELDS if name != "task"])
def test_command_lines_end_or_start(name, tiny_config, tmp_path, monkeypatch):
    """The whole program with each odd text, until it would compile.

    Of texts that are read as the same value, one is tried.
    """
    monkeypatch.chdir(tmp_path)  # Some texts are directories, which are then made.
    monkeypatch.setattr(command_line, "start_processes", lambda: None)
    monkeypatch.setattr(loop, "start", stop_at_start)
    monkeypatch.setattr(loop, "_checkpoints", no_checkpoints)
    small = {"depths": (1,), "focal_levels": (1,), "focal_windows": (3,)}
    for option, value in small.items():
        setattr(tiny_config.model, option, value)
    fields = flatten(tiny_config.to_dict())
    given = [f"--config.{field}={v}" for field, v in fields.items() if field != "task"]
    counts = collections.Counter()
    read = set()
    for text in dict.fromkeys(texts_for(FIELDS[name].takes)):
        value, refusal = outcome(read_field, name, FIELDS[name], text)
        if refusal is None and repr(value) in read:
            continue
        read.add(repr(value))
        arguments = [*given, f"--config.{name}={text}", f"--workdir={tmp_path / 'run'}"]
        with flagsaver.flagsaver(), contextlib.redirect_stderr(io.StringIO()):
            started, message = outcome(program_of, ["main.py", *arguments])
        # To trace a thousand blocks takes minutes.
        is_deep = started and sum((name == "model.depths" and value) or ()) > 9
        if started and name not in OUTSIDE_THE_STEP and not is_deep:
            state, batch = started.abstract_state, started.abstract_batch
            jax.eval_shape(started.train_step, state, batch)
        assert message == refusal or refusal is None
        assert started or len(message.splitlines()) <= 2, (text, message)
        counts["kept" if started else "refused"] += 1
        assert not (tmp_path / "run").exists()
    print_ends(f"command lines with {name}", counts)


def program_of(argv):
    """What a command line comes to compile."""
    try:
        command_line.main(command_line.parse_flags(argv))
    except Reached as reached:
        return reached.args[0]
    except OSError as error:  # of a name that no file can have: `run` shows it so
        raise SetupError(f"{error.filename}: {error.strerror}") from error
