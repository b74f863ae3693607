"""Files of classes: text with the name of a class in each line."""

import pathlib

from focalnet_jax.errors import SetupError, argument
from focalnet_jax.paths import with_home, without_file_scheme


def lines_of_classes(classes: str, *, known: str) -> list[str]:
    """The lines of a file of classes that aren't empty.

    Args:
      classes: the path of the file.
      known: what could have been given in its place, for messages: `"'imagenet2012'"`.

    Raises:
      SetupError: it can't be read, or is no text.
    """
    try:
        path = pathlib.Path(with_home(without_file_scheme(classes)))
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise SetupError(
            f"{argument('classes')}={classes!r} is no text in UTF-8: save it as UTF-8, "
            "with the name of a class in each line"
        ) from error
    except (OSError, ValueError) as error:  # The latter for what is no text, or no path.
        raise SetupError(
            f"{argument('classes')}={classes!r} is neither {known} nor a "
            f"file of classes: {error}"
        ) from error
    return [line for line in lines if line.strip()]
