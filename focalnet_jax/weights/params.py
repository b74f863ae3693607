"""Parameters on disk, in directories that Orbax writes.

WORKDIR/checkpoints/STEP/params     written by `main.py`
WORKDIR/checkpoints/STEP/ema        their average over the steps, with `ema_decay`
WORKDIR/best.json                   which step is the best, with `checkpoint.best_metric`
DIRECTORY/params                    written by `python -m focalnet_jax.convert`

The running averages of a model with BatchNorm lie beside its parameters as `batch_stats`,
and those of the average as `ema_batch_stats`.

Orbax takes long to import, so the functions that need it import it themselves.
"""

import contextlib
import functools
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from etils import epath

from focalnet_jax.errors import SetupError, argument, first_few, first_line, shown
from focalnet_jax.paths import (
    BUCKETS,
    absolute_path,
    did_you_mean_beside,
    is_remote,
    read_json,
    with_home,
    without_file_scheme,
)
from focalnet_jax.trees import PyTree, named_leaves, nested
from focalnet_jax.weights.exported import check_is_not_exported
from focalnet_jax.weights.kernel_sizes import is_focal_kernel, resized_kernel
from focalnet_jax.weights.releases import (
    HUB_FILES,
    is_published,
    likely_files,
    name_at,
    published_name,
)
from focalnet_jax.weights.shards import check_has_whole_file

CHECKPOINTS = "checkpoints"
BEST = "best.json"
_STEM = "patch_embed/proj/kernel"
# A bucket cannot rename directories. There Orbax writes this file into a checkpoint when
# the checkpoint is whole.
_MARKER = "commit_success.txt"


def newest_params_path(path: epath.Path) -> epath.Path | None:
    """The path of the newest parameters at or below `path`; None if there are none.

    Args:
      path: a workdir, its `checkpoints` directory, a single checkpoint, a directory of
        converted parameters, or the `params` or `ema` of a checkpoint.
    """
    if path.name in ("params", "ema") and path.parent.name.isdigit() and path.is_dir():
        return path if _is_whole(path.parent) else None
    if (path / "params").exists():
        return path / "params" if _is_whole(path) else None
    for directory in (path / CHECKPOINTS, path):
        if directory.is_dir():
            steps = [int(p.name) for p in directory.iterdir() if p.name.isdigit()]
            for step in sorted(steps, reverse=True):
                checkpoint = directory / str(step)
                if (checkpoint / "params").exists() and _is_whole(checkpoint):
                    return checkpoint / "params"
    return None


def batch_stats_path(params_path: epath.Path) -> epath.Path:
    """Where the running averages lie that belong to parameters, if there are any.

    Args:
      params_path: of the parameters, or of their average.
    """
    prefix = "ema_" if params_path.name == "ema" else ""
    return params_path.parent / f"{prefix}batch_stats"


def _is_whole(directory: epath.Path) -> bool:
    is_checkpoint = directory.name.isdigit() and is_remote(directory)
    return not is_checkpoint or (directory / _MARKER).exists()


class Best(NamedTuple):
    """The best checkpoint of a run.

    Attributes:
      path: of its parameters, or of their average if the metric is one of the average.
      step: that it was saved after.
      metric: by which it is the best, such as `test/top1`.
      value: of the metric.
    """

    path: epath.Path
    step: int
    metric: str
    value: float


def find_best(workdir: epath.Path) -> Best | None:
    """The best checkpoint of a run that keeps it; None if it isn't known or not there.

    Raises:
      SetupError: the record of it is damaged.
    """
    file = workdir / BEST
    if not file.exists():
        return None
    try:
        record = read_json(file)
        for name, kinds in (
            ("step", (int,)),
            ("metric", (str,)),
            ("value", (int, float)),
        ):
            if type(record.get(name)) not in kinds:
                raise ValueError(f"{name!r} is {shown(record.get(name))}")
    except ValueError as error:
        raise SetupError(
            f"{file} is damaged: {error}. It says which checkpoint is the best; move it "
            "away to have the newest"
        ) from error
    checkpoint = workdir / CHECKPOINTS / str(record["step"])
    if record["metric"].startswith("test_ema/"):
        checkpoint /= "ema"
    # While a better one is being written, the one before may be gone.
    path = newest_params_path(checkpoint)
    return path and Best(path, record["step"], record["metric"], record["value"])


def find_params(source: str | os.PathLike) -> epath.Path:
    """The newest parameters at a path that somebody gives, as `check_holds_params`.

    Raises:
      SetupError: there are none. Where the path is one of published weights, or of a file
        of PyTorch, the message has the command that makes parameters of it.
    """
    source = without_file_scheme(os.fspath(source))
    is_address = is_remote(source) and not source.startswith(BUCKETS)
    if is_address or (source and not os.path.exists(with_home(source))):
        name = source if is_published(published_name(source)) else name_at(source)
        if name:
            raise SetupError(
                f"{source} names published weights: convert them first, {_command(name)}"
            )
    if is_address:
        raise SetupError(
            f"{source} is an address, of which nothing is read: download the file, and "
            f"convert it, {_command('FILE')}"
        )
    return check_holds_params(absolute_path(source))


def _command(source: str | os.PathLike) -> str:
    source = shlex.quote(os.fspath(source))
    return f"to a directory, with python -m focalnet_jax.convert {source} DIRECTORY"


def check_holds_params(path: epath.Path) -> epath.Path:
    """Works as `newest_params_path`, but raises SetupError if there are none."""
    found = newest_params_path(path)
    if found is None:
        if path.is_file():
            raise SetupError(f"{path} is a file: convert weights first, {_command(path)}")
        if not path.exists():
            raise SetupError(f"there is no {path}{did_you_mean_beside(path)}")
        check_is_not_exported(path)
        if files := likely_files(path):
            is_whole = set(HUB_FILES) & {p.name for p in path.iterdir()}
            if not is_whole:
                check_has_whole_file(path, files)
            raise SetupError(
                f"{path} holds no checkpoint, but {first_few(files)}: convert weights "
                f"first, {_command(path if is_whole else path / files[0])}"
            )
        raise SetupError(f"there is no checkpoint in {path}")
    return found


def load_params(
    path: epath.Path,
    abstract_params: PyTree,
    *,
    new: Sequence[str] = (),
    may_be_new: Sequence[str] = (),
    resize_kernels: bool = False,
    causal: bool = False,
) -> PyTree:
    """Reads parameters and checks that they fit a model.

    Args:
      path: the result of `newest_params_path` or `check_holds_params`.
      abstract_params: a nested dict of the expected shapes and dtypes, with shardings.
      new: prefixes of names, such as `"head/"`. Parameters whose names begin so are
        neither read nor checked, and the result lacks them.
      may_be_new: prefixes that the caller could add to `new`. If all problems lie there,
        the error says how to start these parameters anew.
      resize_kernels: zero-pads or crops depthwise kernels to the sizes of the model.
      causal: whether the model is causal, whose kernels end at their centre.

    Raises:
      SetupError: parameters are missing, have another shape, are not in the model or are
        damaged.
    """
    import orbax.checkpoint as ocp

    stored = _without(stored_shapes(path), new)
    expected = _without(named_leaves(abstract_params), new)
    others = _resizable(stored, _shapes(expected)) if resize_kernels else []
    shapes = _shapes(expected) | {name: stored[name] for name in others}
    _check_fit(path, stored, shapes, may_be_new)
    wanted = nested(
        expected | {name: _whole(stored[name], expected[name]) for name in others}
    )
    with _damage_reported(path), ocp.PyTreeCheckpointer() as checkpointer:
        params = checkpointer.restore(
            path,
            ocp.args.PyTreeRestore(
                wanted,
                restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
                partial_restore=True,
            ),
        )
    if not others:
        return params
    named = named_leaves(params)
    for name in others:
        leaf = expected[name]
        resize = functools.partial(resized_kernel, size=leaf.shape[:-2], causal=causal)
        named[name] = jax.jit(resize, out_shardings=leaf.sharding)(named[name])
    return nested(named)


def _resizable(
    stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """The names of depthwise kernels whose sizes alone differ from those of the model."""
    return [
        name
        for name in stored.keys() & expected.keys()
        if is_focal_kernel(name)
        and stored[name] != expected[name]
        and len(stored[name]) == len(expected[name])
        and stored[name][-2:] == expected[name][-2:]
    ]


def _whole(shape: tuple[int, ...], like: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """An array of another shape that each device of `like` has as a whole."""
    sharding = like.sharding
    if isinstance(sharding, jax.sharding.NamedSharding):
        whole = jax.sharding.PartitionSpec()
        sharding = jax.sharding.NamedSharding(sharding.mesh, whole)
    return jax.ShapeDtypeStruct(shape, like.dtype, sharding=sharding)


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads parameters by name, with the shapes and dtypes that are stored.

    Raises:
      SetupError: the parameters are damaged.
    """
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    with _damage_reported(path), ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(path, jax.tree.map(abstract, _metadata(path)))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}


def save_params(path: epath.Path, params: PyTree) -> None:
    """Writes parameters in the form in which the checkpoints of a run hold them.

    Raises:
      OSError: they can't be written, as to a full disk.
    """
    import orbax.checkpoint as ocp

    _check_room(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, params)
    except OSError:
        raise
    except Exception as error:  # Orbax and its store have no common class of errors.
        if code := re.search(r"os_error_code='(\d+)'", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error
        raise OSError(first_line(error)[:200]) from error


def _check_room(directory: epath.Path, size: int) -> None:
    """Raises OSError if no file of `size` bytes fits onto the disk.

    Orbax writes in many threads. On a full disk some of them print their traces when
    the error has long been said.
    """
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=directory) as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))


def stored_shapes(path: epath.Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays that are stored at `path`, by name.

    Raises:
      SetupError: what is stored is damaged.
    """
    with _damage_reported(path):
        return _shapes(named_leaves(_metadata(path)))


def _metadata(path: epath.Path) -> PyTree:
    import orbax.checkpoint as ocp

    return ocp.StandardCheckpointHandler().metadata(path)


@contextlib.contextmanager
def _damage_reported(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # Another process failed or the memory is full: no file is at fault.
    except Exception as error:  # Orbax and its store have no common class of errors.
        raise SetupError(f"{path} is damaged: {first_line(error)[:200]}") from error


def _shapes(named: Mapping[str, PyTree]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named.items()}


def _without(named: Mapping[str, PyTree], prefixes: Sequence[str]) -> dict[str, PyTree]:
    return {n: leaf for n, leaf in named.items() if not n.startswith(tuple(prefixes))}


def _check_fit(
    path: epath.Path,
    stored: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    may_be_new: Sequence[str],
) -> None:
    problems = {
        name: f"{name} {shape} is not in the model"
        for name, shape in stored.items()
        if name not in expected
    }
    for name, shape in expected.items():
        if name not in stored:
            problems[name] = f"{name} {shape} is not stored"
        elif stored[name] != shape:
            problems[name] = f"{name} is stored as {stored[name]}, the model has {shape}"
    if problems:
        lines = "\n  ".join(sorted(problems.values()))
        hint = ""
        of_kernels = {*_resizable(stored, expected)}
        of_heads = {name for name in problems if name.startswith(tuple(may_be_new))}
        if problems.keys() <= of_kernels | of_heads:
            if of_kernels:
                hint += (
                    f"\nFor kernels of other sizes, {argument('resize_kernels')}=True "
                    "zero-pads or crops them"
                )
            if of_heads:
                hint += (
                    f"\nFor another head, {argument('reset_head')}=True starts it anew; "
                    "python -m focalnet_jax.convert --help shows what else can be changed"
                )
        elif [*problems] == [_STEM] and stored.get(_STEM, ())[2:3] == (3,):
            hint = (
                f"\nThe command python -m focalnet_jax.convert {path.parent} DIRECTORY "
                f"--set=in_channels={expected[_STEM][2]} makes these weights of RGB "
                "images fit"
            )
        raise SetupError(f"{path} does not fit the model:\n  {lines}{hint}")
