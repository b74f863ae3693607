"""What a command is to do: a new run, or one that goes on."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.convert.directories import write_directory
from focalnet_jax.convert.reading import Reading
from focalnet_jax.data.sources.layout import FOLDER
from focalnet_jax.data.sources.listed import read_list, write_list
from focalnet_jax.errors import SetupError, argument, counted, first_few
from focalnet_jax.finetune.defaults import make_config, set_pace
from focalnet_jax.finetune.folder import (
    Contents,
    first_changed,
    inspect_images,
    list_images,
)
from focalnet_jax.finetune.split import Split, make_split
from focalnet_jax.finetune.start import Start, read_start
from focalnet_jax.finetune.workdir import (
    IMAGES,
    START,
    check_same,
    read_record,
    write_record,
)
from focalnet_jax.paths import with_home
from focalnet_jax.train import default_config
from focalnet_jax.train.overrides import Override, apply_overrides
from focalnet_jax.weights.description import ModelDescription, find_description
from focalnet_jax.weights.params import newest_params_path

# Fields that follow from the folder, the workdir, the weights and options.
_DECIDED = {
    *("data.name", "data.files", "data.classes", "data.train_split", "data.test_split"),
    *("model.num_classes", "init_from", "reset_head", "resize_kernels", "seed"),
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks for.

    Attributes:
      root: the folder of images.
      workdir: of the run.
      weights: as for `load_model`; None for new ones.
      reading: how they are read; its name, image size and seed are for new ones, too.
      options: of the model.
      test_share: of each class, if the folder has no splits.
      overrides: fields of the configuration.
    """

    root: pathlib.Path
    workdir: pathlib.Path
    weights: str | None
    reading: Reading
    options: dict[str, Any]
    test_share: float
    overrides: Sequence[Override] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, of which nothing is written yet if it is a new one.

    Attributes:
      request: what it was made of.
      is_new: whether it is.
      split: of all images.
      config: of the run; not checked yet.
      start: the weights, if they had to be read.
      remarks: texts for people; their arguments are not spelt yet.
    """

    request: Request
    is_new: bool
    split: Split
    config: ConfigDict
    start: Start | None
    remarks: tuple[str, ...]

    def write(self) -> None:
        """Writes what the run begins with, as far as it isn't there."""
        workdir = self.request.workdir
        if self.is_new:
            write_record(workdir, _record(self.request))
            write_list(workdir / IMAGES, self.split.rows)
            # Another run may have ended there before it had learnt anything.
            shutil.rmtree(workdir / START, ignore_errors=True)
        if self.start is not None:
            start = self.start
            write_directory(workdir / START, start.description, start.variables)


def make_plan(request: Request) -> Plan:
    """Looks at the images, the weights and the workdir.

    Raises:
      SetupError: something about them is wrong. Nothing is written.
    """
    if request.workdir.is_relative_to(request.root):
        raise SetupError(
            f"the workdir {request.workdir} would lie in {request.root}, whose "
            "directories are classes: give a --workdir elsewhere"
        )
    _check_options(request)
    contents = list_images(request.root)
    before = read_record(request.workdir)
    if before is not None:
        check_same(request.workdir, before, _record(request))
    # What can be wrong is found before all images are read, which may take long.
    described, start = _described(request, len(contents.classes), is_new=before is None)
    if before is not None:
        split = _written_split(request, contents)
    else:
        inspection = inspect_images(request.root, contents.images)
        split = make_split(
            contents.images,
            inspection,
            test_share=request.test_share,
            seed=request.reading.seed,
        )
    config, remarks = _configured(request, split, described)
    notes = start.notes if start else ()
    remarks = (*contents.remarks, *split.remarks, *notes, *remarks)
    return Plan(request, before is None, split, config, start, remarks)


def _check_options(request: Request) -> None:
    """Raises SetupError for options that don't go together."""
    if "num_classes" in request.options:
        raise SetupError(
            f"{argument('num_classes')} is not for this command: the folder has as many "
            "classes as directories"
        )
    for name, _ in request.overrides:
        if name in _DECIDED:
            how = argument("seed") if name == "seed" else "which"
            raise SetupError(f"{name} is not for this command, {how} sets it")
    apply_overrides(default_config(), request.overrides)  # Raises for what is misspelt.
    usual = Reading()
    if request.weights is None:
        for name in (
            *("wrapper", "prefix", "ignore"),
            *("resize_kernels", "add_levels", "allow_nan"),
        ):
            if getattr(request.reading, name) != getattr(usual, name):
                raise SetupError(f"{argument(name)} is for weights: give --weights, too")


def _record(request: Request) -> dict[str, Any]:
    """What `finetune.json` has."""
    weights = request.weights
    if weights is not None and os.path.exists(with_home(weights)):
        weights = os.path.abspath(with_home(weights))
    return {
        "images": str(request.root),
        "weights": weights,
        "seed": request.reading.seed,
        "test_share": request.test_share,
    }


def _written_split(request: Request, contents: Contents) -> Split:
    """The split that the run in a workdir began with.

    Raises:
      SetupError: the folder lacks images of it, or has other ones of the same names.
    """
    rows = read_list(request.workdir / IMAGES)
    here = {image.file for image in contents.images}
    used = {row.file: row.sha256 for row in rows if row.split}
    problem = None
    if missing := [file for file in used if file not in here]:
        problem = (
            f"{request.root} lacks {len(missing):,} of its {len(used):,}, such as "
            f"{missing[0]!r}"
        )
    elif changed := first_changed(request.root, used):
        problem = f"{changed!r} in {request.root} has other contents than when it began"
    if problem:
        raise SetupError(
            f"the run in {request.workdir} is one on other images: {problem}. Give "
            "another --workdir"
        )
    remarks = ()
    if new := sorted(here - {row.file for row in rows}):
        remarks += (
            f"{counted(len(new), 'image')} came after the run began and is not in it: "
            f"{first_few(new)}; a run with another --workdir has all images",
        )
    return Split(rows, remarks)


def _described(
    request: Request, num_classes: int, *, is_new: bool
) -> tuple[ModelDescription | None, Start | None]:
    """What the weights are, and the weights themselves if they have to be read."""
    if request.weights is None:
        return None, None
    # A run that goes on has a copy of its own, and needs none once it has a checkpoint.
    workdir = epath.Path(request.workdir)
    for place in () if is_new else (workdir / START, workdir):
        if newest_params_path(place) is not None:
            return find_description(place), None
    start = read_start(
        request.weights,
        request.reading,
        request.options,
        num_classes=num_classes,
    )
    return start.description, start


def _configured(
    request: Request, split: Split, start: ModelDescription | None
) -> tuple[ConfigDict, tuple[str, ...]]:
    images = split.count("train")
    config = make_config(
        images=images,
        num_classes=len(split.classes),
        start=start,
        name=request.reading.name,
        options=request.options,
        image_size=request.reading.image_size,
        seed=request.reading.seed,
        devices=jax.device_count(),
    )
    config.data.name = f"{FOLDER}{request.root}"
    config.data.files = str(request.workdir / IMAGES)
    config.data.train_split = "train"
    config.data.test_split = split.chooses
    config.init_from = None if start is None else str(request.workdir / START)
    remarks = apply_overrides(config, request.overrides)
    set_pace(config, images=images, given={name for name, _ in request.overrides})
    return config, tuple(remarks)
