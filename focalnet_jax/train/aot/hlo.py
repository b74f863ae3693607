"""Reads the program of a device, as the TPU compiler prints it."""

import collections
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping

from focalnet_jax.train.aot.bundles import Schedule

_DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_DTYPE_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)
# Gives the schedule of a kernel by the name of its operation.
_ScheduleOf = Callable[[str], Schedule | None]

_KERNEL = 'custom_call_target="tpu_custom_call"'


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation that the device runs.

    Attributes:
      name: in the program.
      kind: such as `fusion`, `copy` or `custom-call`.
      result: its type, with the layout.
      source: what it comes from in the traced program, such as
        `jit(step)/jvp(FocalNet)/head/dot_general`; empty if the compiler has made it.
      cycles: of one run, as the compiler or its schedule says; None if neither does.
      open_loops: loops in it whose lengths aren't known, see `Schedule`.
      times: how often it runs; once in a loop whose length can't be seen.
      is_in_open_loop: whether it is in such a loop.
      is_kernel: whether it is a Pallas kernel, or a fusion with one.
      text: all that the compiler prints of it.
    """

    name: str
    kind: str
    result: str
    source: str
    cycles: int | None
    open_loops: int
    times: int
    is_in_open_loop: bool
    is_kernel: bool
    text: str

    @property
    def total_cycles(self) -> int:
        return self.times * (self.cycles or 0)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one run of a program takes, operations one after the other.

    Attributes:
      cycles: those that the compiler estimates, and the bundles of kernels; None if 1 %
        of them or more are in loops whose lengths can't be seen.
      kernel_calls: calls of Pallas kernels that are counted.
      kernel_cycles: those of these calls.
      open_loops: loops in these kernels that are counted once, see `Schedule`.
      uncounted_calls: calls of Pallas kernels of which there is no schedule.
      collectives: by kind, how many there are, and the bytes of their results.
    """

    cycles: int | None
    kernel_calls: int
    kernel_cycles: int
    open_loops: int
    uncounted_calls: int
    collectives: dict[str, tuple[int, int]]


def estimate(
    text: str,
    schedule_of: _ScheduleOf = lambda name: None,
    *,
    bytes_per_cycle: float = math.inf,
) -> Estimate:
    """Adds up what the operations of a program take.

    Args:
      text: a compiled program, as text.
      schedule_of: gives the schedule of a kernel by the name of its operation.
      bytes_per_cycle: between the chip and its memory. A kernel takes no less than its
        operands and results take to be moved.
    """
    cycles = open_cycles = 0
    kernels: collections.Counter[str] = collections.Counter()
    collectives: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for operation in operations(text, schedule_of, bytes_per_cycle=bytes_per_cycle):
        cycles += operation.total_cycles
        if operation.is_in_open_loop:
            open_cycles += operation.total_cycles
        if operation.is_kernel and operation.cycles is None:
            kernels["uncounted"] += operation.times
        elif operation.is_kernel:
            kernels["calls"] += operation.times
            kernels["cycles"] += operation.total_cycles
            kernels["open loops"] += operation.open_loops
        kind = operation.kind.removesuffix("-start")
        if kind in _COLLECTIVES:
            sizes = [
                count * _DTYPE_BYTES.get(dtype, 0)
                for dtype, count in arrays(operation.result)
            ]
            # The result of a start also holds what goes in.
            is_start = kind != operation.kind
            size = sizes[1] if is_start and len(sizes) > 1 else sum(sizes)
            collectives[kind][0] += operation.times
            collectives[kind][1] += operation.times * size
    return Estimate(
        cycles=cycles if open_cycles < cycles / 100 or not cycles else None,
        kernel_calls=kernels["calls"],
        kernel_cycles=kernels["cycles"],
        open_loops=kernels["open loops"],
        uncounted_calls=kernels["uncounted"],
        collectives={kind: (n, size) for kind, (n, size) in sorted(collectives.items())},
    )


def operations(
    text: str,
    schedule_of: _ScheduleOf = lambda name: None,
    *,
    bytes_per_cycle: float = math.inf,
) -> Iterator[Operation]:
    """The operations of a program that a device runs, but for those within fusions.

    A loop whose length can't be seen counts once, such as one that draws until a number
    is accepted. Of the branches of a condition, each counts.

    Args:
      text, schedule_of, bytes_per_cycle: as for `estimate`.
    """
    bodies = collections.defaultdict(list)
    entry = current = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = header[2]
            entry = current if header[1] else entry
        elif current:
            bodies[current].append(line)
    schedules = _Schedules(bodies, schedule_of)

    def visit(computation: str, times: int, is_open: bool) -> Iterator[Operation]:
        for line in bodies[computation]:
            found = re.match(r" *(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(", line)
            if not found:
                continue
            name, result, kind = found.groups()
            cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
            cycles = int(cycles[1]) if cycles else None
            open_loops = 0
            if kernel := _kernel_of(line, bodies):
                schedule = schedules.of(name, _code(kernel))
                least = math.ceil(_bytes_moved(kernel) / bytes_per_cycle)
                cycles = max(schedule.cycles, least) if schedule else None
                open_loops = schedule.open_loops if schedule else 0
            elif cycles is None and kind == "while":
                condition = _name_after("condition=", line)
                count = _trip_count(bodies[condition])
                body = _name_after("body=", line)
                yield from visit(body, times * (count or 1), is_open or count is None)
            elif cycles is None and kind in ("async-start", "conditional", "call"):
                for called in _called(line):
                    yield from visit(called, times, is_open)
            source = re.search(r'op_name="([^"]*)"', line)
            yield Operation(
                name=name,
                kind=kind,
                result=result,
                source=source[1] if source else "",
                cycles=cycles,
                open_loops=open_loops,
                times=times,
                is_in_open_loop=is_open,
                is_kernel=kernel is not None,
                text=line.strip(),
            )

    if entry:
        yield from visit(entry, 1, False)


class _Schedules:
    """The schedules of kernels; of equal ones the compiler writes only one."""

    def __init__(self, bodies: Mapping[str, list[str]], schedule_of: _ScheduleOf):
        self._own: dict[str, Schedule] = {}
        self._of_code: dict[str, Schedule] = {}
        for line in itertools.chain.from_iterable(bodies.values()):
            if kernel := _kernel_of(line, bodies):
                code = _code(kernel)
                name = _name_after("^ *(?:ROOT )?", line)
                if schedule := schedule_of(name):
                    self._own[name] = schedule
                    # They may differ a little by where the operands are.
                    known = self._of_code.get(code, schedule)
                    self._of_code[code] = max(known, schedule, key=lambda s: s.cycles)

    def of(self, name: str, code: str) -> Schedule | None:
        return self._own.get(name) or self._of_code.get(code)


def _name_after(pattern: str, line: str) -> str:
    """The name that follows on the pattern, which every such line has."""
    found = re.search(rf"{pattern}%?([\w.\-]+)", line)
    assert found is not None, line
    return found[1]


def _kernel_of(line: str, bodies: Mapping[str, list[str]]) -> str | None:
    """The line of the kernel that an operation is, or that is fused into it."""
    if _KERNEL in line:
        return line
    if " fusion(" in line and (called := re.search(r" calls=%?([\w.\-]+)", line)):
        for inner in bodies.get(called[1], ()):
            if _KERNEL in inner:
                return inner
    return None


def _code(kernel: str) -> str:
    found = re.search(r'"custom_call_config":\{"body":"([^"]*)"', kernel)
    return found[1] if found else kernel


def _bytes_moved(kernel: str) -> int:
    """Of the operands and results of a kernel, as they lie in memory.

    The last axis is filled up to the lanes of a register.
    """
    results = re.search(r"= (.*?) custom-call\(", kernel)
    operands = re.search(r"operand_layout_constraints=\{(.*?\})\}", kernel)
    return sum(
        _DTYPE_BYTES.get(dtype, 0) * math.prod([*sizes[:-1], -(-sizes[-1] // 128) * 128])
        for found in (results, operands)
        for dtype, sizes in (_shapes(found[1]) if found else ())
    )


def _called(line: str) -> list[str]:
    """The computations that an operation calls, a list of them included."""
    keywords = r"calls|to_apply|branch_computations|\w+_computation"
    groups = re.findall(rf"(?:{keywords})=(\{{[^}}]*\}}|%?[\w.\-]+)", line)
    return re.findall(r"[\w.\-]+", " ".join(groups))


def _trip_count(condition: list[str]) -> int | None:
    """The length of a loop that counts from 0 to a constant, as `scan` makes them."""
    text = "\n".join(condition)
    root = re.search(r"ROOT .* compare\(%\S+, %(\S+)\), direction=LT", text)
    bound = root and re.search(
        rf"%{re.escape(root[1])} = s32\[\]\S* constant\((\d+)\)", text
    )
    return int(bound[1]) if bound else None


def arrays(result: str) -> list[tuple[str, int]]:
    """The dtype and the number of elements of each array in a type."""
    return [(dtype, math.prod(sizes)) for dtype, sizes in _shapes(result)]


def _shapes(result: str) -> list[tuple[str, list[int]]]:
    return [
        (dtype, [int(size) for size in sizes.split(",") if size] or [1])
        for dtype, sizes in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
