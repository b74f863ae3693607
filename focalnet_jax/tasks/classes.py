"""Whether a model, the data sets and the classes they count go together."""

import contextlib
from collections.abc import Sequence

from etils import epath
from ml_collections import ConfigDict

from focalnet_jax.data import BadRecordError, Source, check_label
from focalnet_jax.errors import SetupError
from focalnet_jax.weights.description import find_description


def check_labels_fit(config: ConfigDict, source: Source) -> None:
    """Raises SetupError if the model has too few classes, as far as one can see."""
    if (source.num_classes or 0) > config.model.num_classes:
        raise SetupError(
            f"model.num_classes={config.model.num_classes} is too few for "
            f"{source.name}, which has {source.num_classes} classes"
        )
    # Some splits have no labels, and some data sets don't say how many classes they
    # have: one record tells most of them. All are checked as they are read.
    if not source.has_label_sets:
        with contextlib.suppress(BadRecordError):  # it has its turn later
            _, label = source.read(0)
            check_label(source, 0, label, num_classes=config.model.num_classes)


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
            "in a line, in data.classes"
        )


def check_same_classes(directory: epath.Path, source: Source) -> None:
    """Raises SetupError if the model in `directory` has learnt other classes."""
    description = find_description(directory)
    theirs = description and description.classes
    if theirs and source.class_names and tuple(theirs) != source.class_names:
        raise SetupError(
            f"the model in {directory} has learnt other classes than those of "
            f"{source.name}: "
            f"{_difference(theirs, source.class_names, ('the model', 'the data set'))}. "
            "So labels don't mean the same. Of a folder, data.classes says which classes "
            'its labels count; if they do mean the same, set "classes" to null in the '
            "model's model.json"
        )


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
