"""What results say of how they were measured."""

import json
import pathlib
import re
import shlex
import sys
from typing import Any

_PATHS = {"--json": "FILE", "--before": "DIR", "--images": "DIR"}


def command(program: str) -> str:
    """The command line of this process, without the paths of its machine."""
    words, hidden = ["python", program], None
    for word in sys.argv[1:]:
        if hidden:
            word, hidden = hidden, None
        elif word in _PATHS:
            hidden = _PATHS[word]
        elif match := re.match(rf"({'|'.join(_PATHS)})=", word):
            word = match[0] + _PATHS[match[1]]
        words.append(word)
    return shlex.join(words)


def read(path: pathlib.Path) -> Any:
    """The results in a file of JSON; ends the program with one line if there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise SystemExit(
            f"error: nothing has been measured yet: there is no {path}"
        ) from None
