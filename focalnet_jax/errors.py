"""Errors for people: what was given, what is allowed, what was probably meant."""

import difflib
from collections.abc import Iterable


class SetupError(Exception):
    """Something that whoever started the program can mend; shown without a trace."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `allowed`, else the whole choice."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(str(given), allowed, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(allowed)}"
