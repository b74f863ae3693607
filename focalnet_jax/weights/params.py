"""Parameters on disk: Orbax directories, of a run or of a converter.

WORKDIR/checkpoints/STEP/params     what `main.py` writes
WORKDIR/checkpoints/STEP/ema        with `ema_decay`: their average over the steps
DIRECTORY/params                    what `python -m focalnet_jax.convert` writes
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from focalnet_jax.errors import SetupError
from focalnet_jax.paths import is_remote

PyTree = Any
CHECKPOINTS = "checkpoints"
# Orbax's, of a checkpoint that is whole, where none can be written aside and renamed.
_MARKER = "commit_success.txt"


def newest_params_path(path: epath.Path) -> epath.Path | None:
    """Where the newest parameters below `path` lie; None if there are none.

    Args:
      path: a workdir, its `checkpoints` directory, a single checkpoint, a directory of
        converted parameters; or a checkpoint's `params` or `ema` itself.
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


def _is_whole(directory: epath.Path) -> bool:
    is_checkpoint = directory.name.isdigit() and is_remote(directory)
    return not is_checkpoint or (directory / _MARKER).exists()


def check_holds_params(path: epath.Path) -> epath.Path:
    """As `newest_params_path`, but raises SetupError where there are none."""
    found = newest_params_path(path)
    if found is None:
        if path.is_file():
            raise SetupError(
                f"{path} is a file: convert weights first, to a directory, with "
                f"python -m focalnet_jax.convert {path} DIRECTORY"
            )
        if not path.exists():
            raise SetupError(f"there is no {path}")
        raise SetupError(f"there is no checkpoint in {path}")
    return found


def load_params(
    path: epath.Path, abstract_params: PyTree, *, with_head: bool = True
) -> PyTree:
    """Reads parameters and checks that they fit.

    Args:
      path: from `newest_params_path` or `check_holds_params`.
      abstract_params: expected shapes and dtypes, with shardings.
      with_head: whether to read the head's, too.

    Raises:
      SetupError: a parameter too many, too few or of another shape; they are damaged.
    """
    with _damage_told(path):
        stored = stored_shapes(path)
    if not with_head:
        stored = {n: s for n, s in stored.items() if not n.startswith("head/")}
        abstract_params = {n: p for n, p in abstract_params.items() if n != "head"}
    _check_fit(path, stored, _shapes(abstract_params))
    with _damage_told(path), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            path,
            ocp.args.PyTreeRestore(
                abstract_params,
                restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_params),
                partial_restore=True,
            ),
        )


def read_arrays(path: epath.Path) -> dict[str, np.ndarray]:
    """Reads parameters as they are stored: `{"head/bias": [1000], ...}`.

    Raises:
      SetupError: they are damaged.
    """
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def abstract(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

    with _damage_told(path), ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(path, jax.tree.map(abstract, _metadata(path)))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}


@contextlib.contextmanager
def _damage_told(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError:
        raise  # of other processes, or for want of memory
    except Exception as error:  # Orbax and its store raise all kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetupError(f"{path} is damaged: {reason[:200]}") from error


def save_params(path: epath.Path, params: PyTree) -> None:
    """Writes parameters, whole, as a run's checkpoints hold them."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, params)


def stored_shapes(path: epath.Path) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of the arrays that lie at `path`."""
    return _shapes(_metadata(path))


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by their path, as in `layers_0/blocks_0/norm1/scale`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }


def _metadata(path: epath.Path) -> PyTree:
    return ocp.StandardCheckpointHandler().metadata(path)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _check_fit(path: epath.Path, stored: Mapping, expected: Mapping) -> None:
    problems = [
        f"{name} {shape} is not in the model"
        for name, shape in stored.items()
        if name not in expected
    ]
    for name, shape in expected.items():
        if name not in stored:
            problems.append(f"{name} {shape} is not stored")
        elif stored[name] != shape:
            problems.append(f"{name} is stored as {stored[name]}, the model has {shape}")
    if problems:
        lines = "\n  ".join(sorted(problems))
        hint = ""
        if all(problem.startswith("head/") for problem in problems):
            hint = "\nFor another head: --config.reset_head=True starts it anew; more in "
            hint += "python -m focalnet_jax.convert --help"
        raise SetupError(f"{path} does not fit the model:\n  {lines}{hint}")
