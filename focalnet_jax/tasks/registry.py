"""The tasks by name."""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from focalnet_jax.fields import Fields
from focalnet_jax.tasks import (
    classification,
    masked_image_modeling,
    semantic_segmentation,
)
from focalnet_jax.tasks.base import Task
from focalnet_jax.weights.description import (
    CLASSIFICATION,
    MASKED_IMAGE_MODELING,
    SEMANTIC_SEGMENTATION,
)


class TaskEntry(NamedTuple):
    """How the trainer comes by a task.

    Attributes:
      fields: of the configuration, beside those that every run has.
      make: makes the task of a configuration whose fields are checked one by one; raises
        SetupError for values that don't go together.
    """

    fields: Fields
    make: Callable[[ConfigDict], Task]


TASKS: dict[str, TaskEntry] = {
    CLASSIFICATION: TaskEntry(classification.FIELDS, classification.make),
    MASKED_IMAGE_MODELING: TaskEntry(
        masked_image_modeling.FIELDS, masked_image_modeling.make
    ),
    SEMANTIC_SEGMENTATION: TaskEntry(
        semantic_segmentation.FIELDS, semantic_segmentation.make
    ),
}
"""The tasks by name. A package of one's own adds an entry where its recipe imports it:
`docs/tasks.md` shows how."""
