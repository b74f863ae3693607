"""Files of ONNX, which are written whole or not at all."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

from focalnet_jax.paths import check_may_write, written_aside

# Bytes of parameters. A file of protocol buffers has less than 2 GiB.
_LARGEST_FILE = 2**31 - 2**24

# Bytes of a constant that stays in the graph, as runtimes compute with sizes and axes
# before they read parameters. It is the default of ONNX's own library.
_SMALL = 1024


def data_path(path: pathlib.Path) -> pathlib.Path:
    """Where the parameters lie that the file of a graph can't hold: `PATH.data`."""
    return path.with_name(f"{path.name}.data")


def write_onnx(path: pathlib.Path, proto) -> None:
    """Writes a graph, and a file `PATH.data` beside it for what one file can't hold.

    They replace what was there once they are written. A file `PATH.data` of an older
    graph goes with it. There is never a graph with the parameters of another one.

    Args:
      path: ends in `.onnx`. If it is a link, both files lie where that leads to.
      proto: an `onnx.ModelProto`, from which parameters are taken that go to `PATH.data`.

    Raises:
      OSError: the files can't be written.
      SetupError: one of them is a directory.
    """
    path = pathlib.Path(os.path.realpath(path))
    data = data_path(path)
    for place in (path, data):
        check_may_write(place, overwrite=True)
    is_large = sum(len(c.raw_data) for c in proto.graph.initializer) > _LARGEST_FILE
    with written_aside(path) as graph, contextlib.ExitStack() as between:
        if is_large:
            with written_aside(data) as parameters:
                _move_parameters(proto, parameters, name=data.name)
                graph.write_bytes(proto.SerializeToString())
                # If the program ends between the two renamings, there is no graph.
                between.enter_context(_absent(path))
        else:
            graph.write_bytes(proto.SerializeToString())
    if not is_large:
        data.unlink(missing_ok=True)


def _move_parameters(proto, path: pathlib.Path, *, name: str) -> None:
    """Moves parameters from a graph to a file that will have a name beside the graph."""
    from onnx.external_data_helper import set_external_data

    with path.open("wb") as file:
        for constant in proto.graph.initializer:
            if (size := len(constant.raw_data)) >= _SMALL:
                set_external_data(constant, name, offset=file.tell(), length=size)
                file.write(constant.raw_data)
                constant.ClearField("raw_data")


@contextlib.contextmanager
def _absent(path: pathlib.Path) -> Iterator[None]:
    """Has no file at `path` meanwhile, and removes it for good if all goes well."""
    old = path.with_name(f".{path.name[-40:]}.old")
    with contextlib.suppress(FileNotFoundError):
        path.rename(old)
    try:
        yield
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            old.rename(path)
        raise
    old.unlink(missing_ok=True)
