"""Counts the cycles of Pallas kernels in the schedule that the TPU compiler writes.

A kernel is a custom call, for which the compiler estimates nothing. But it schedules its
instructions: a bundle holds those that are issued in one cycle. On request, libtpu writes
the final bundles of each operation of a program into a file, as text:

    0x27 LB: >> { %s1 = sphi %s0, %s2  ;;  %s2 = sadd.s32 1, %s1 } /* Start region 9 */
    0x28   : >> { %p3 = scmp.ge.s32.totalorder %s2, 14 /* loop exit test */ }
    0x29   : >> { %4 = sbr.rel (!%p3) target = $region9 }

`LB` is the first bundle of a loop, and the loop ends with the branch back to one of the
regions that start there, and the bundles that are still issued after a branch. What is
counted is the time if nothing waits, neither for memory nor for the results of other
units, and if all that depends on a condition runs each time.
"""

import atexit
import contextlib
import dataclasses
import functools
import importlib.util
import mmap
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator

# The bundles after a branch that are issued whether it is taken or not.
_DELAY_SLOTS = 4

# The grid of a kernel is a loop that fetches, computes and writes back at once, each for
# another step of the grid. So it runs twice more than the grid has steps.
_EXTRA_STEPS = 2

_VARIABLE = "LIBTPU_INIT_ARGS"
_FLAGS = {
    "xla_jf_dump_llo_text": "true",
    "xla_jf_dump_llo_pass_label_regex": "^final_bundles",
}
_DIRECTORY_FLAG = "xla_jf_dump_to"


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What one call of a kernel takes, if nothing has to wait.

    Attributes:
      cycles: the bundles that are issued, in loops as often as they run.
      open_loops: the loops whose lengths are known only when the kernel runs. They are
        counted as if they ran once.
    """

    cycles: int
    open_loops: int


@dataclasses.dataclass
class _Loop:
    """A loop, or a whole kernel.

    Attributes:
      text: its first bundle.
      bundles: those outside inner loops.
      exits: the registers that are compared to leave it or a loop in it, with the
        numbers that they are compared with.
      last: the address of the last bundle, when it has been seen.
      is_pipeline: whether it is the loop over a grid that moves its blocks.
    """

    text: str
    bundles: int = 0
    exits: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    last: int | None = None
    is_pipeline: bool = False
    inner: list["_Loop"] = dataclasses.field(default_factory=list)


def read_schedule(text: str) -> Schedule:
    """The schedule in the text of a file of final bundles."""
    kernel = _Loop("")
    nest = [kernel]
    for address, is_loop, bundle in _bundles(text):
        while nest[-1].last is not None and address > nest[-1].last:
            nest.pop()
        if is_loop:
            nest[-1].inner.append(_Loop(bundle))
            nest.append(nest[-1].inner[-1])
        nest[-1].bundles += 1
        # The test of a loop may be issued with the last bundles of one in it.
        for loop in nest:
            loop.exits += [(tested, int(n)) for tested, n in _EXIT.findall(bundle)]
        # Only the loop over a grid has stages.
        if len(nest) > 1 and re.search(r"iteration index, stage = [1-9]", bundle):
            nest[1].is_pipeline = True
        for region in re.findall(r"sbr\.rel [^$]*target = \$region(\d+)", bundle):
            for loop in nest[1:]:
                if re.search(rf"Start region {region}\b", loop.text):
                    loop.last = address + _DELAY_SLOTS

    open_loops = 0

    def count(loop: _Loop, times: int) -> int:
        nonlocal open_loops
        total = loop.bundles
        for inner in loop.inner:
            length = _length(inner, text)
            if length is None:
                open_loops += 1
            elif inner.is_pipeline:
                length = max(length - _EXTRA_STEPS, 1)
            total += count(inner, length or 1)
        return times * total

    cycles = count(kernel, 1)
    return Schedule(cycles, open_loops)


def _bundles(text: str) -> Iterator[tuple[int, bool, str]]:
    """Address of each bundle, whether a loop begins there, and its text in some lines."""
    starts = [*re.finditer(r"^ *(0x[0-9a-f]+|0) +([A-Z]{2})? *: ", text, re.M)]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends):
        yield int(start[1], 16), start[2] == "LB", text[start.end() : end]


def _length(loop: _Loop, text: str) -> int | None:
    """How often a loop runs; None if only the running kernel knows.

    Args:
      loop: what is known of it.
      text: of the whole kernel.
    """
    for tested, limit in loop.exits:
        if added := re.search(rf"{tested} = sadd\.s32 {_IF}(\d+), (%\w+)([^;}}]*)", text):
            step, counter, remark = added.groups()
            start = _start(loop, {counter, tested}, text)
            if start is None and _GRID in loop.text and _GRID in remark:
                start = 0  # Its counter is stored outside of the registers.
            if start is not None:
                return max(-(-(limit - start) // int(step)), 1)
    return None


def _start(loop: _Loop, names: set[str], text: str) -> int | None:
    """What a counter of a loop begins with; it has one of these names."""
    for counter, first, after in re.findall(r"(%\w+) = sphi ([%\w]+), (%\w+)", loop.text):
        copied = re.search(rf"{after} = smov\.u32 {_IF}(%\w+)", text)
        if names & {counter, after, copied and copied[1]}:
            return _constant(first, text)
    return None


# An instruction may depend on a condition.
_IF = r"(?:\(!?%\w+\), )?"

_EXIT = re.compile(rf"scmp\.ge\.s32\.totalorder {_IF}(%\w+), (\d+) /\* loop exit")

# The remark at the counter of the loop over a grid.
_GRID = "iteration index, stage = 0"


def _constant(operand: str, text: str) -> int | None:
    """The value of an operand that is a number, or that one was moved to."""
    if operand.isdecimal():
        return int(operand)
    moved = re.search(rf"{operand} = smov\.u32 {_IF}([%\w]+)", text)
    return _constant(moved[1], text) if moved else None


# --- What libtpu writes ---------------------------------------------------------


@contextlib.contextmanager
def requested() -> Iterator[None]:
    """Asks libtpu for schedules, if it is loaded in this context."""
    given = os.environ.get(_VARIABLE)
    if directory := _directory():
        os.environ[_VARIABLE] = f"{given or ''} {flags(directory)}"
    try:
        yield
    finally:
        if directory:
            os.environ.pop(_VARIABLE)
            if given is not None:
                os.environ[_VARIABLE] = given


@contextlib.contextmanager
def collected() -> Iterator[Callable[[str], Schedule | None]]:
    """The schedules of what is compiled in this context, by the name of an operation.

    None stands for an operation of which libtpu has written nothing: where several are
    equal, it writes one of them.
    """
    directory = _directory()
    _empty(directory)
    try:
        yield functools.partial(find_schedule, directory)
    finally:
        _empty(directory)


def find_schedule(directory: pathlib.Path | None, name: str) -> Schedule | None:
    """The schedule that libtpu has written into a directory, None if it hasn't.

    Args:
      directory: None for none.
      name: of an operation.
    """
    pattern = rf"\d+-{re.escape(name)}-\d+-final_bundles\.txt"
    for path in directory.iterdir() if directory else ():
        if re.fullmatch(pattern, path.name):
            return read_schedule(path.read_text("utf-8"))
    return None


def flags(directory: pathlib.Path) -> str:
    """What `LIBTPU_INIT_ARGS` has to say for libtpu to write into a directory."""
    options = {_DIRECTORY_FLAG: directory} | _FLAGS
    return " ".join(f"--{name}={value}" for name, value in options.items())


@functools.cache
def _directory() -> pathlib.Path | None:
    """Where libtpu writes as long as this program runs; None if it can't be asked.

    It reads its flags once, when it is loaded, and ends the program at one that it
    doesn't know.
    """
    if _DIRECTORY_FLAG in os.environ.get(_VARIABLE, ""):
        return None  # Somebody else has asked it.
    if not _libtpu_knows(_DIRECTORY_FLAG, *_FLAGS):
        return None
    directory = tempfile.mkdtemp(prefix="focalnet_jax_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return pathlib.Path(directory)


def _libtpu_knows(*flags: str) -> bool:
    found = importlib.util.find_spec("libtpu")
    if found is None or found.origin is None:
        return False
    [library] = pathlib.Path(found.origin).parent.glob("libtpu.so")
    with (
        library.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return all(content.find(flag.encode()) >= 0 for flag in flags)


def _empty(directory: pathlib.Path | None) -> None:
    for path in directory.iterdir() if directory else ():
        path.unlink()
