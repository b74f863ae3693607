"""Predicts the classes of images.

    python -m focalnet_jax.predict photo.jpg --weights=runs/digits
    python -m focalnet_jax.predict photos '*.png' --weights=hf:microsoft/focalnet-tiny
    find . -name '*.jpg' | python -m focalnet_jax.predict - --weights=converted/tiny --json

IMAGE is a file, a directory whose images are taken at any depth, a pattern such as
'photos/*.jpg', or - for a list of files on standard input, one a line.

--weights takes all that `focalnet_jax.load_model` takes: the workdir of a run, a converted
directory, a file of weights, hf:OWNER/NAME, or the name of an official release.

An image that can't be read is named and skipped, and the exit status is 1.
"""

import argparse
import collections
import concurrent.futures
import csv
import glob
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from focalnet_jax import command_line
from focalnet_jax.convert.model_arguments import (
    add_reading_arguments,
    model_options,
    reading,
    spell,
)
from focalnet_jax.data.sources.listing import EXTENSIONS, images_and_directories
from focalnet_jax.errors import SetupError, counted, did_you_mean, first_line
from focalnet_jax.pretrained import Prediction, Pretrained, load_model

_BATCH_SIZE = 32


class Result(NamedTuple):
    """What is known of an image: its predictions, or why it could not be read."""

    image: str
    predictions: list[Prediction]
    problem: str | None = None


def main(argv: list[str] | None = None) -> bool:
    """Runs the command line; returns whether all images could be read.

    Raises:
      SetupError: there are no images or no weights, or they can't be used.
    """
    args = parse(argv)
    images = find_images(args.images, sys.stdin)
    command_line.find_devices()
    options = model_options(args.set)
    pretrained = load_model(args.weights, **reading(args)._asdict_for_load(), **options)
    show = _SHOWS[args.format]()
    problems = 0
    with tqdm(total=len(images), unit="image", disable=_is_quiet(images, args)) as bar:
        for result in classify(pretrained, images, args.topk, args.batch_size):
            if result.problem:
                problems += 1
                bar.write(f"skipped {result.image}: {result.problem}", file=sys.stderr)
            else:
                bar.write(show(result), file=sys.stdout)
            bar.update()
    if problems:
        print(f"{counted(problems, 'image')} could not be read", file=sys.stderr)
    return not problems
