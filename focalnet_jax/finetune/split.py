"""Which image is for training and which for testing: decided once, and written down."""

import collections
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from focalnet_jax.data.sources.listed import Listed
from focalnet_jax.errors import SetupError, counted, first_few
from focalnet_jax.finetune.folder import Image, Inspection


class Split(NamedTuple):
    """All images of a folder with their splits, and remarks as texts for people."""

    rows: list[Listed]
    remarks: tuple[str, ...] = ()

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their labels."""
        return sorted({row.class_name for row in self.rows if row.split})

    @property
    def chooses(self) -> str:
        """The name of the split by which the best checkpoint is chosen."""
        return "val" if self.count("val") else "test"

    @property
    def tests(self) -> str:
        """The name of the split that the report is about."""
        return "test" if self.count("test") else "val"

    def count(self, split: str) -> int:
        """The number of images in a split."""
        return sum(row.split == split for row in self.rows)


def make_split(
    images: Sequence[Image], inspection: Inspection, *, test_share: float, seed: int
) -> Split:
    """Gives each image that can be used its split.

    Where the folder has splits, they stay as they are. Otherwise the given share of each
    class is for testing: at least one image, and never all of them. An image that is
    there several times is for training alone: otherwise a copy of what was learnt would
    be tested. It doesn't count for the share.

    Which images are tested depends on the names of the files and the seed. So an image
    that is added moves at most one other from training to testing, or back. If it is a
    copy, its original leaves the tested ones as well.

    Raises:
      SetupError: a class has no image that can be read, or none to train on; or there is
        nothing to test with.
    """
    usable = [image for image in images if image.file in inspection.digests]
    _check_classes(images, usable)
    copies = _copies(usable, inspection)
    has_splits = any(image.split for image in images)
    if has_splits:
        splits = {image.file: image.split or "" for image in usable}
    else:
        splits = _stratified(usable, {*copies}, test_share=test_share, seed=seed)
    rows = [
        Listed(
            image.file,
            image.class_name,
            splits.get(image.file, ""),
            note=inspection.faults.get(image.file, ""),
            sha256=inspection.digests.get(image.file, ""),
        )
        for image in images
    ]
    _check_trainable(rows)
    remarks = (
        *_remarks_on_faults(inspection),
        *_remarks_on_copies(copies, splits, are_given=has_splits),
        *_remarks_on_classes(rows),
    )
    return Split(rows, remarks)


def _stratified(
    images: Iterable[Image], copies: set[str], *, test_share: float, seed: int
) -> dict[str, str]:
    by_class = collections.defaultdict(list)
    for image in images:
        by_class[image.class_name].append(image.file)
    splits: dict[str, str] = {}
    for files in by_class.values():
        single = [file for file in files if file not in copies]
        count = min(max(1, round(test_share * len(single))), len(files) - 1)
        tested = {*sorted(single, key=lambda file: _draw(file, seed))[:count]}
        splits |= {file: "test" if file in tested else "train" for file in files}
    return splits


def _draw(file: str, seed: int) -> bytes:
    """A number by which images are drawn."""
    return hashlib.blake2b(os.fsencode(f"{seed}/{file}"), digest_size=8).digest()


def _copies(images: Iterable[Image], inspection: Inspection) -> dict[str, list[Image]]:
    """The images that are there several times, by file: all that are the same."""
    same = collections.defaultdict(list)
    for image in images:
        same[inspection.digests[image.file]].append(image)
    return {
        image.file: group for group in same.values() if len(group) > 1 for image in group
    }


def _check_classes(images: Sequence[Image], usable: Sequence[Image]) -> None:
    names = {image.class_name for image in usable}
    if gone := sorted({image.class_name for image in images} - names):
        raise SetupError(
            f"no image of the class {first_few(gone)} can be read: replace them, or "
            "delete the directory"
        )


def _check_trainable(rows: Sequence[Listed]) -> None:
    learnt = {row.class_name for row in rows if row.split == "train"}
    tested = {row.class_name for row in rows if row.split in ("val", "test")}
    if unknown := sorted(tested - learnt):
        raise SetupError(
            f"there are no images to train on of the class {first_few(unknown)}, which "
            "is in another split"
        )
    if not tested:
        raise SetupError(
            "there is nothing to test with: each class has a single image, or copies of "
            "one; a class needs at least two"
        )


def _remarks_on_faults(inspection: Inspection) -> Iterable[str]:
    faults = inspection.faults
    if faults:
        lines = [f"left out, since they can't be read: {counted(len(faults), 'image')}"]
        lines += [f"{file}: {fault}" for file, fault in [*faults.items()][:10]]
        lines += [f"and {len(faults) - 10:,} more"] if len(faults) > 10 else []
        yield "\n  ".join(lines)


def _remarks_on_copies(
    copies: dict[str, list[Image]], splits: dict[str, str], *, are_given: bool
) -> Iterable[str]:
    if copies and not are_given:
        yield (
            f"{len(copies):,} images are there several times, such as "
            f"{next(iter(copies))!r}: these are for training alone"
        )
    groups = {id(group): group for group in copies.values()}.values()
    torn = [group for group in groups if len({splits[i.file] for i in group}) > 1]
    if torn:
        yield (
            f"{counted(len(torn), 'image')} are in several splits, such as "
            f"{torn[0][0].file!r} and {torn[0][1].file!r}: what was learnt is tested, so "
            "results look better than they are"
        )
    for group in groups:
        if len({image.class_name for image in group}) > 1:
            names = " and ".join(repr(image.file) for image in group[:2])
            yield f"the same image is in two classes: {names}"


def _remarks_on_classes(rows: Sequence[Listed]) -> Iterable[str]:
    learnt = collections.Counter(row.class_name for row in rows if row.split == "train")
    for split in ("val", "test"):
        tested = {row.class_name for row in rows if row.split == split}
        if tested and (missing := sorted(learnt.keys() - tested)):
            yield (
                f"no image of the class {first_few(missing)} is for testing"
                if split == "test"
                else f"the split 'val' has no image of the class {first_few(missing)}"
            )
    if learnt and max(learnt.values()) >= 10 * min(learnt.values()):
        most, *_, least = (name for name, _ in learnt.most_common())
        yield (
            f"classes differ much in size: {most!r} has {learnt[most]:,} images to train "
            f"on, and {least!r} has {learnt[least]:,}; the accuracy of each class is in "
            "the report"
        )
