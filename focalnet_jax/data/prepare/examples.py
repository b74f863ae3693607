"""Records as TFDS stores them, and the metadata with which TFDS finds them."""

import pathlib
from collections.abc import Callable
from typing import Any

import tensorflow_datasets as tfds

from focalnet_jax.data.prepare.writing import ShardFile, write_data_set


def serializer(features: tfds.features.FeaturesDict) -> Callable[[dict[str, Any]], bytes]:
    """A function that turns a record into the bytes of a `tf.train.Example`."""
    examples = tfds.core.ExampleSerializer(features.get_serialized_info())

    def serialize(record: dict[str, Any]) -> bytes:
        example = examples.get_tf_example(features.encode_example(record))
        # An example is a map, whose order would differ from process to process.
        return example.SerializeToString(deterministic=True)

    return serialize


def write_examples(
    directory: pathlib.Path,
    files: dict[str, list[ShardFile]],
    info: tfds.core.DatasetInfo,
    *,
    fingerprint: str,
) -> bool:
    """Writes a data set of serialised examples, as `write_data_set` does.

    Args:
      directory: the directory of the data set.
      files: the files of each split.
      info: describes the data set; this function adds the splits.
      fingerprint: hexadecimal digits that depend on everything that is written.

    Returns:
      whether the data set existed already.
    """

    def write_metadata(directory: pathlib.Path) -> None:
        splits = []
        for split, shards in files.items():
            lengths = [shard.num_records for shard in shards]
            sizes = [(directory / shard.file_name).stat().st_size for shard in shards]
            splits.append(tfds.core.SplitInfo(split, lengths, sum(sizes)))
        info.set_splits(tfds.core.SplitDict(splits))
        info.write_to_directory(directory)

    shards = [shard for split in files.values() for shard in split]
    return write_data_set(directory, shards, write_metadata, fingerprint=fingerprint)
