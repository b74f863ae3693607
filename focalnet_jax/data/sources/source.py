"""A split of a data set, as a sequence of still-encoded records."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from etils import epath

from focalnet_jax.data.bad_records import BadRecordError
from focalnet_jax.data.labels import Labels
from focalnet_jax.data.sources.fingerprint import contents_digest, digest
from focalnet_jax.data.sources.shards import read_checksums
from focalnet_jax.errors import SetupError
from focalnet_jax.paths import is_remote


@dataclasses.dataclass(frozen=True)
class Source:
    """One split of a data set.

    Attributes:
      name: of the data set and split, for messages: `"digits, split 'test'"`.
      records: are read at random; of images each has `image`, encoded bytes.
      class_names: by label; empty where the data set names none.
      num_classes: None where the data set doesn't say.
      subset: the labels that can occur, if the data set is known to have few of its
        classes. Accuracy is measured among these only. None means all labels.
      label_feature: what a record calls its label.
      has_label_sets: whether a label is a sequence of ints, any of which is right.
      files: names, and numbers of records, of the files that hold one after the other.
      remarks: what is left out of the data set, or where it lies, as lines for people.
    """

    name: str
    records: Sequence[dict[str, Any]]
    class_names: tuple[str, ...] = ()
    num_classes: int | None = None
    subset: tuple[int, ...] | None = None
    label_feature: str = "label"
    has_label_sets: bool = False
    files: tuple[tuple[str, int], ...] = ()
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    @property
    def note(self) -> str:
        """What to say of results on this split."""
        return f", among {len(self.subset):,} classes" if self.subset else ""

    def fingerprint(self) -> dict[str, str]:
        """What tells these records from others, wherever they lie.

        Returns:
          Digests: `names` and `contents` of files, and `checksums` if there are any.
          Empty for records in memory.
        """
        of_records = getattr(self.records, "fingerprint", None)
        if of_records is not None:  # Folders know themselves.
            return of_records()
        if not self.files:
            return {}
        paths = [epath.Path(path) for path, _ in self.files]
        names = [path.name for path in paths]
        counts = [count for _, count in self.files]
        digests = {
            "names": digest(repr((names, counts)).encode()),
            "contents": contents_digest(len(paths), paths.__getitem__),
        }
        checksums = read_checksums(paths[0].parent)
        if checksums.keys() >= {*names}:
            digests["checksums"] = digest(*(checksums[n].encode() for n in names))
        return digests

    def labels(self, num_classes: int | None = None) -> Labels:
        """What labels can be.

        Args:
          num_classes: of a model, in which labels have to fit; None for any.
        """
        return Labels(
            num_classes=self.num_classes if self.has_label_sets else num_classes,
            subset=self.subset,
            feature=self.label_feature,
            are_sets=self.has_label_sets,
        )

    def read(self, index: int) -> dict[str, Any]:
        """Returns a record.

        Raises:
          BadRecordError: it can't be read.
          SetupError: it can't be read, and lies in a bucket: the fault may be the
            network's, and the next time it could be read.
        """
        try:
            return self.records[index]
        except Exception as error:  # Each kind of storage has its own.
            if is_remote(self._file_of(index) or ""):
                raise SetupError(
                    f"{self.describe(index)} can't be read: {error}"
                ) from error
            raise BadRecordError(f"it can't be read: {error}") from error

    def describe(self, index: int) -> str:
        """Names a record for messages, and its own file or that which holds it."""
        place = self._file_of(index)
        try:
            place = self.records[index]["file_name"]
            place = place.decode(errors="replace") if isinstance(place, bytes) else place
        except Exception:  # The name isn't kept, or the record is damaged.
            pass
        return f"record {index} of {self.name}" + (f" ({place})" if place else "")

    def _file_of(self, index: int) -> str | None:
        for name, count in self.files:
            if index < count:
                return name
            index -= count
        return None
