"""TFDS data sets as sequences of still-encoded records.

`tfds.data_source` reads ArrayRecord files at random, without TensorFlow. Images stay
encoded: decoding belongs to the transform, once, beside the crop.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds

from focalnet_jax.data import digits  # registers the embedded data set
from focalnet_jax.errors import SetupError, did_you_mean

# Prepared on first use, for they need no download.
EMBEDDED = {"digits": digits.Digits}


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: of the data set and split, for messages: `"digits, split 'test'"`.
      records: random access; each has `image`, encoded bytes, and `label`, an int.
      class_names: by label; empty where the data set names none.
      num_classes: None where the data set doesn't say.
    """

    name: str
    records: Sequence[dict[str, Any]]
    class_names: tuple[str, ...] = ()
    num_classes: int | None = None

    def __len__(self) -> int:
        return len(self.records)


def check_label(name: str, index: int, label: int, *, num_classes: int | None) -> None:
    """Raises SetupError unless the label of a source's record fits `num_classes`."""
    if label < 0:
        raise SetupError(f"record {index} of {name} has label {label}, that is, none")
    if num_classes is not None and label >= num_classes:
        raise SetupError(
            f"record {index} of {name} has label {label}, which does not fit "
            f"model.num_classes={num_classes}"
        )


def open_source(name: str, *, split: str, data_dir: str | None = None) -> Source:
    """Opens a split of a TFDS data set; prepares it if it is an embedded one.

    Args:
      name: as TFDS spells it, with config and version if need be.
      split: as TFDS spells it: `"train"`, `"train[:90%]"` ...
      data_dir: where data sets lie; None for TFDS's own place
        (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`).

    Raises:
      SetupError: an unknown name or split, an empty split, a data set that isn't
        prepared or not as ArrayRecord, or one without images and labels.
    """
    builder = _builder(name, data_dir)
    if name in EMBEDDED and not builder.is_prepared():
        _prepare(builder)
    _check_prepared(builder, name, data_dir)
    features = builder.info.features
    for feature in ("image", "label"):
        if feature not in features:
            raise SetupError(
                f"data.name={name!r} has no {feature!r} but {', '.join(features)}: "
                "image classification needs 'image' and 'label'"
            )
    return Source(
        name=f"{name}, split {split!r}",
        records=_records(builder, name, split),
        class_names=tuple(getattr(features["label"], "names", None) or ()),
        num_classes=getattr(features["label"], "num_classes", None),
    )


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = did_you_mean(name, known)
        # The list of all TFDS data sets would bury the message.
        hint = near if len(near) < 100 else "; see https://www.tensorflow.org/datasets"
        raise SetupError(f"data.name={name!r} is no TFDS data set{hint}") from error
    except (AssertionError, ValueError) as error:  # an unknown config or version
        raise SetupError(f"data.name={name!r} cannot be opened: {error}") from error


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    try:
        builder.download_and_prepare(file_format="array_record")
    except OSError:
        # TFDS prepares aside and renames: another process may have been first.
        if not builder.is_prepared():
            raise


def _check_prepared(builder, name: str, data_dir: str | None) -> None:
    command = f"tfds build {name} --file_format=array_record"
    if builder.is_prepared():
        file_format = builder.info.file_format
        if file_format == tfds.core.FileFormat.ARRAY_RECORD:
            return
        raise SetupError(
            f"data.name={name!r} is prepared in {builder.data_dir} as "
            f"{file_format.value}, which has no random access. Prepare it as "
            f"array_record in a directory of its own, and name that in data.data_dir:\n"
            f"  pip install '.[prepare]' && {command} --data_dir=DIRECTORY"
        )
    if data_dir:
        command += f" --data_dir={data_dir}"
    lines = [
        f"data.name={name!r} is not prepared in {builder.data_dir}. Prepare it once with",
        f"  pip install '.[prepare]' && {command}",
    ]
    if builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        downloads = builder.data_path.parents[len(builder.info.full_name.split("/")) - 1]
        instructions = " ".join(builder.MANUAL_DOWNLOAD_INSTRUCTIONS.split())
        lines += [
            f"after putting its files into {downloads / 'downloads' / 'manual'}:",
            f"  {instructions}",
        ]
    raise SetupError("\n".join(lines))


def _records(builder, name: str, split: str) -> Sequence[dict[str, Any]]:
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise SetupError(
            f"{name} has no split {split!r}{did_you_mean(split, builder.info.splits)}"
        ) from error
    if not info.num_examples:
        raise SetupError(f"split {split!r} of {name} is empty")
    return builder.as_data_source(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
