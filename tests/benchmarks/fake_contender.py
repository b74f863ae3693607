"""A contender that computes nothing: `fake_contender.py KIND LOG`.

It notes in LOG what it was asked to prepare.
"""

import os
import sys
import time

import turns

kind, log = sys.argv[1:]


def turn():
    if kind == "breaks":
        raise ValueError("out of memory\nand more")
    return {"good": 2.0, "fast": 1.0}[kind]


def prepare(task):
    with open(log, "a", encoding="utf-8") as file:
        print(kind, task, file=file)
    print("a library's greeting")
    if kind == "raises":
        raise RuntimeError("INTERNAL: no algorithm\nand where it was")
    if kind == "dies":
        print("Check failed: no card", file=sys.stderr)
        os._exit(7)
    if kind == "hangs" and task != "warm-up":
        time.sleep(600)
    return turn, {"losses": [1.0]}


turns.serve(prepare)
