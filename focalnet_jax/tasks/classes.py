"""Whether a classifier, the data sets and the classes they count go together."""

import contextlib
import re
from collections.abc import Sequence

from etils import epath

from focalnet_jax.data import BadRecordError, Source, WrongRecordError
from focalnet_jax.data.sources.layout import class_name
from focalnet_jax.errors import SetupError, argument
from focalnet_jax.weights.description import find_description


def check_labels_fit(source: Source, num_classes: int) -> None:
    """Raises SetupError if a model has too few classes, as far as one can see."""
    if (source.num_classes or 0) > num_classes:
        raise SetupError(
            f"{argument('num_classes')}={num_classes} is too few for {source.name}, "
            f"which has {source.num_classes} classes"
        )
    # Some splits have no labels, and some data sets don't say how many classes they
    # have: one record shows it of most of them. All are checked as they are read.
    if not source.has_label_sets:
        with contextlib.suppress(BadRecordError):  # Its turn comes later.
            record = source.read(0)
            try:
                source.labels(num_classes).read(record)
            except WrongRecordError as error:
                raise SetupError(f"{source.describe(0)} {error.args[0]}") from error


def check_trainable(train_source: Source, test_source: Source) -> None:
    """Raises SetupError unless one can train on the one and test on the other."""
    if train_source.has_label_sets:
        raise SetupError(f"{train_source.name} has sets of labels: they are for testing")
    ours, theirs = train_source.class_names, test_source.class_names
    if ours and theirs and ours != theirs:
        raise SetupError(
            f"{train_source.name} and {test_source.name} have other classes: "
            f"{_difference(ours, theirs, ('the former', 'the latter'))}. So their labels "
            "don't mean the same. If they are folders, name a file with all classes, one "
            f"in a line, in {argument('classes')}"
        )


def class_differences(directory: epath.Path, source: Source) -> list[str]:
    """A line if the model in `directory` has learnt other classes than those here."""
    description = find_description(directory)
    theirs = description.classes if description else None
    difference = difference_of_classes(theirs, source)
    if not difference:
        return []
    return [
        f"classes: {difference}. So labels don't mean the same. The labels of an image "
        f"folder count the classes that {argument('classes')} names; if they do mean the "
        'same, set "classes" to null in the model\'s model.json'
    ]


def difference_of_classes(theirs: Sequence[str] | None, source: Source) -> str:
    """How the classes that a model has learnt differ from those of a data set.

    Args:
      theirs: the names of the model's classes; None if they are not known.
      source: the data set.

    Returns:
      The part of a sentence; empty if they don't differ, as far as one can see.
    """
    if not theirs or not source.class_names:
        return ""
    theirs = tuple(map(class_name, theirs))
    if theirs == source.class_names:
        return ""
    if _are_wordnet_ids(theirs) != _are_wordnet_ids(source.class_names):
        return ""  # Words do not tell whether they mean the same as WordNet's ids.
    return _difference(theirs, source.class_names, ("the model", "the data set"))


def _are_wordnet_ids(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"n\d{8}", name) for name in names)


def _difference(
    ours: Sequence[str], theirs: Sequence[str], owners: tuple[str, str]
) -> str:
    """What is in one of two lists of names and not in the other."""
    parts = []
    for owner, these, others in ((owners[0], ours, theirs), (owners[1], theirs, ours)):
        if only := sorted({*these} - {*others}):
            names = ", ".join([*only[:3], *(["..."] if len(only) > 3 else [])])
            parts.append(f"only {owner} has {names}")
    return " and ".join(parts) or "they are in another order"
