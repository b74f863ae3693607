"""What this package writes for other programs to run, and reads no weights from."""

from etils import epath

from focalnet_jax.errors import SetupError

_PROGRAM = ("program.stablehlo", "params.safetensors")
# A file of each directory that the package writes, and what the directory is.
_DIRECTORIES = {
    _PROGRAM[0]: "a program of StableHLO, which jax.export.deserialize reads",
    "onnxruntime-licence.txt": "a page of python -m focalnet_jax.demo, for a browser",
    "receptive_fields.png": "what python -m focalnet_jax.visualize shows of a net",
}


def check_is_not_exported(path: epath.Path) -> None:
    """Raises SetupError for what was made of a net and can't be read as one again.

    Args:
      path: of a directory or a file.
    """
    directory = path.parent if path.name in _PROGRAM else path
    for name, kind in _DIRECTORIES.items():
        if (directory / name).exists():
            raise SetupError(
                f"{directory} is {kind}, and no weights are read from it: give what it "
                "was made of, such as the directory of a run"
            )
