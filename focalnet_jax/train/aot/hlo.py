"""Reads the program of a device, as the TPU compiler prints it."""

import collections
import re

import numpy as np

_DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_DTYPE_BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
)


def analyse(text: str) -> tuple[int | None, dict[str, tuple[int, int]]]:
    """Adds up the compiler's estimates, and the collectives, of one run of a program.

    A loop whose length can't be seen counts once, such as one that draws until a number
    is accepted.

    Returns:
      the estimated cycles, None if 1 % of them or more are in such loops; and the
      collectives by kind: how many there are, and the bytes of their results.
    """
    bodies = collections.defaultdict(list)
    entry = current = None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = header[2]
            entry = current if header[1] else entry
        elif current:
            bodies[current].append(line)

    cycles = unknown_cycles = 0
    collectives = collections.defaultdict(lambda: [0, 0])
    pattern = rf"= (.*?) ({'|'.join(_COLLECTIVES)})(-start)?\("

    def visit(name: str, times: int) -> None:
        nonlocal cycles, unknown_cycles
        for line in bodies[name]:
            if found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += times * int(found[1])
            elif loop := re.search(
                r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line
            ):
                count = _trip_count(bodies[loop[1]])
                before = cycles
                visit(loop[2], times * (count or 1))
                unknown_cycles += 0 if count else cycles - before
            elif called := re.search(r" async-start\(.*calls=%?([\w.\-]+)", line):
                visit(called[1], times)
            if found := re.search(pattern, line):
                result, kind, is_start = found.groups()
                shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
                sizes = [*map(_shape_bytes, shapes)]
                # The result of a start also holds what goes in.
                size = sizes[1] if is_start and len(sizes) > 1 else sum(sizes)
                collectives[kind][0] += times
                collectives[kind][1] += times * size

    if entry:
        visit(entry, 1)
    totals = {kind: tuple(total) for kind, total in sorted(collectives.items())}
    return cycles if unknown_cycles < cycles / 100 else None, totals


def _trip_count(condition: list[str]) -> int | None:
    """The length of a loop that counts from 0 to a constant, as `scan` makes them."""
    text = "\n".join(condition)
    root = re.search(r"ROOT .* compare\(%\S+, %(\S+)\), direction=LT", text)
    bound = root and re.search(
        rf"%{re.escape(root[1])} = s32\[\]\S* constant\((\d+)\)", text
    )
    return int(bound[1]) if bound else None


def _shape_bytes(shape: tuple[str, str]) -> int:
    dtype, sizes = shape
    return _DTYPE_BYTES.get(dtype, 0) * int(
        np.prod([int(s) for s in sizes.split(",") if s])
    )
