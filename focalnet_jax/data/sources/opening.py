"""Data sets as sequences of still-encoded records: those of TFDS, and image folders.

`tfds.data_source` reads ArrayRecord files at random, without TensorFlow. Images stay
encoded: decoding belongs to the transform, once, beside the crop.
"""

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from focalnet_jax.data.sources import digits  # registers the embedded data set
from focalnet_jax.data.sources.builders import default_data_dir, open_builder
from focalnet_jax.data.sources.imagenet import SUBSETS
from focalnet_jax.data.sources.layout import FOLDER
from focalnet_jax.data.sources.opening_folder import open_folder
from focalnet_jax.data.sources.shards import check_shards
from focalnet_jax.data.sources.source import Source
from focalnet_jax.errors import SetupError, argument, did_you_mean, first_line
from focalnet_jax.paths import is_remote

# Prepared on first use, for they need no download.
EMBEDDED = {"digits": digits.Digits}

# Takes the place of `label` in ImageNet-ReaL, Beyer et al., arXiv 2006.07159.
LABEL_SETS = "real_label"


def open_source(
    name: str,
    *,
    split: str,
    data_dir: str | None = None,
    classes: str | None = None,
    files: str | None = None,
) -> Source:
    """Opens a split of a data set; prepares it if it is an embedded one.

    Args:
      name: as TFDS spells it, with config and version if need be; or `folder:DIR`, of
        images `DIR/SPLIT/CLASS/xxx.jpg`, or `DIR/CLASS/xxx.jpg` for the split `train`.
      split: as TFDS spells it: `"train"`, `"train[:90%]"` ...; of a folder, a directory.
      data_dir: where data sets of TFDS lie; None for TFDS's own place
        (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`).
      classes: of a folder, what its labels count: None for its own directories, sorted;
        `"imagenet2012"` for ImageNet-1K's classes, of which it may have a part; or a
        file with a class's name in each line.
      files: of a folder, a list of images with their classes and splits, which takes the
        place of directories; see `listed.py`.

    Raises:
      SetupError: an unknown name or split, an empty split, a data set that isn't
        prepared or not as ArrayRecord, one without images and labels, or missing or
        truncated files.
    """
    if name.startswith(FOLDER):
        return open_folder(name, split=split, classes=classes, files=files)
    for field, given in (("classes", classes), ("files", files)):
        if given is not None:
            raise SetupError(
                f"{argument(field)}={given!r} is for image folders; "
                f"{argument('name')}={name!r} has labels of its own"
            )
    if name in EMBEDDED:
        builder, remarks = _open_embedded(name, data_dir)
    else:
        builder, remarks = open_builder(name, data_dir=data_dir), ()
    check_prepared(builder, name, data_dir)
    features = builder.info.features
    label_feature = LABEL_SETS if LABEL_SETS in features else "label"
    for feature in ("image", label_feature):
        if feature not in features:
            raise SetupError(
                f"{argument('name')}={name!r} has no {feature!r} but "
                f"{', '.join(features)}: image classification needs 'image' and 'label'"
            )
    label = features[label_feature]
    has_label_sets = isinstance(label, tfds.features.Sequence)
    label = label.feature if has_label_sets else label
    num_classes = getattr(label, "num_classes", None)
    return Source(
        name=f"{name}, split {split!r}",
        records=records_of(builder, name, split),
        class_names=tuple(getattr(label, "names", None) or ()),
        num_classes=num_classes,
        subset=SUBSETS.get(builder.name) if num_classes == 1000 else None,
        label_feature=label_feature,
        has_label_sets=has_label_sets,
        files=files_of(builder, split),
        remarks=remarks,
    )


def _open_embedded(
    name: str, data_dir: str | None
) -> tuple[tfds.core.DatasetBuilder, tuple[str, ...]]:
    """Opens an embedded data set, which is prepared on its first use.

    Where the home directory can't be written, and nobody has named another place, it is
    prepared in a temporary directory.

    Returns:
      the data set, and what to say of where it lies.

    Raises:
      SetupError: the place that somebody has named can't be written.
    """
    try:
        place = data_dir or default_data_dir()
    except SetupError:
        place, reason = None, "there is none"
    if place:
        try:
            return _prepared(name, place), ()
        except OSError as error:
            reason = f"{error.filename or place}: {error.strerror or first_line(error)}"
    if given := data_dir or os.environ.get("TFDS_DATA_DIR"):
        raise SetupError(
            f"{name} can't be prepared in {given} ({reason}): name a directory that can "
            f"be written, {argument('data_dir')}=DIR or TFDS_DATA_DIR in the environment"
        )
    try:
        directory = _spare_directory()
        builder = _prepared(name, directory)
    except OSError as error:
        raise SetupError(
            f"{name} can't be prepared in the home directory ({reason}), nor in a "
            f"temporary one ({error}): name a directory that can be written, "
            f"{argument('data_dir')}=DIR or TFDS_DATA_DIR in the environment"
        ) from error
    remark = (
        f"{name} is prepared in {directory}, until the program ends, since the home "
        f"directory can't be used ({reason}); TFDS_DATA_DIR=DIR names a place that stays"
    )
    return builder, (remark,)


@functools.cache
def _spare_directory() -> str:
    directory = tempfile.mkdtemp(prefix="focalnet_jax_data_")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _prepared(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    builder = open_builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        # TFDS would begin to speak before it finds out that it can't write there.
        builder.data_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            builder.download_and_prepare(file_format="array_record")
        except OSError:
            # TFDS prepares aside and renames: another process may have been first.
            if not builder.is_prepared():
                raise
    return builder


def check_prepared(
    builder: tfds.core.DatasetBuilder, name: str, data_dir: str | None
) -> None:
    """Raises SetupError for a data set that isn't prepared, or not as ArrayRecord."""
    command = f"tfds build {name} --file_format=array_record"
    place = f"{argument('name')}={name!r} is prepared in {builder.data_dir}"
    if builder.is_prepared():
        file_format = builder.info.file_format
        if file_format == tfds.core.FileFormat.ARRAY_RECORD:
            return
        if file_format != tfds.core.FileFormat.TFRECORD:
            raise SetupError(
                f"{place} as {file_format.value}, which has no random access. Prepare it "
                "as array_record in a directory of its own, and name that in "
                f"{argument('data_dir')}:\n"
                f"  pip install 'focalnet_jax[prepare]' && {command} --data_dir=DIRECTORY"
            )
        if is_remote(builder.data_dir):
            raise SetupError(
                f"{place} as tfrecord, which has no random access. Copy it to a disk, "
                "convert it there with\n"
                f"  python -m focalnet_jax.data.prepare {name}\n"
                "and copy the result to the bucket"
            )
        option = f" --data-dir={data_dir}" if data_dir else ""
        raise SetupError(
            f"{place} as tfrecord, which has no random access. Copy it to array_record "
            "files, without downloading or encoding anything again:\n"
            f"  python -m focalnet_jax.data.prepare {name}{option}"
        )
    if data_dir:
        command += f" --data_dir={data_dir}"
    lines = [
        f"{argument('name')}={name!r} is not prepared in {builder.data_dir}. Prepare it "
        "once with",
        f"  pip install 'focalnet_jax[prepare]' && {command}",
    ]
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        downloads = builder.data_path.parents[len(builder.info.full_name.split("/")) - 1]
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        lines += [
            f"after putting its files into {downloads / 'downloads' / 'manual'}:",
            f"  {instructions}",
        ]
    raise SetupError("\n".join(lines))


def records_of(
    builder: tfds.core.DatasetBuilder,
    name: str,
    split: str,
    *,
    encoded: Sequence[str] = ("image",),
) -> Sequence[dict[str, Any]]:
    """The records of a split, which are read at random.

    Args:
      builder: opens a data set that `check_prepared` has passed.
      name: of the data set, for messages.
      split: as TFDS spells it.
      encoded: the names of the features that stay encoded.

    Raises:
      SetupError: there is no such split, it is empty, or files are missing or truncated.
    """
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise SetupError(
            f"{name} has no split {split!r}{did_you_mean(split, builder.info.splits)}"
        ) from error
    if not info.num_examples:
        raise SetupError(f"split {split!r} of {name} is empty")
    check_shards(builder, split)
    return builder.as_data_source(
        split=split, decoders={name: tfds.decode.SkipDecoding() for name in encoded}
    )


def files_of(
    builder: tfds.core.DatasetBuilder, split: str
) -> tuple[tuple[str, int], ...]:
    """The files of a split, and how many records of each are in it."""
    shards = builder.info.splits[split].file_instructions
    return tuple((shard.filename, shard.take) for shard in shards)
