"""What results say of how they were measured."""

import re
import shlex
import sys

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
