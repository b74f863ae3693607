"""What checkpoints of mmsegmentation say of their classes, in the entry `meta`.

mmsegmentation 1.x has `dataset_meta` there, with `classes`, `palette` and
`reduce_zero_label`; 0.x has `CLASSES` and `PALETTE`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from focalnet_jax.values import Flag, NotAllowed, Several, Text, Values
from focalnet_jax.weights.description import COLORS, ModelDescription

_CLASSES = Several(Text(), most=2**16)


class ClassesOfMeta(NamedTuple):
    """What is known of the classes of a checkpoint; None where nothing says it.

    Attributes:
      classes: their names in the order of the logits.
      colors: red, green and blue of each in pictures.
      reduce_zero_label: whether 0 stands for no class in the masks, and 1 for the first.
    """

    classes: list[str] | None = None
    colors: list[list[int]] | None = None
    reduce_zero_label: bool | None = None


def read_meta(meta: Any, num_classes: int) -> ClassesOfMeta:
    """Reads the entry `meta`; what is of another number of classes is left out.

    Args:
      meta: whatever the checkpoint has there.
      num_classes: of the model.
    """
    if not isinstance(meta, Mapping):
        return ClassesOfMeta()
    inner = meta.get("dataset_meta")
    inner = inner if isinstance(inner, Mapping) else {}

    def read(values: Values, *names: str) -> Any:
        for holder, name in ((inner, names[0]), (meta, names[-1])):
            try:
                return values.convert(holder[name])
            except (KeyError, NotAllowed):
                continue
        return None

    classes = read(_CLASSES, "classes", "CLASSES")
    colors = read(COLORS, "palette", "PALETTE")
    return ClassesOfMeta(
        list(classes) if classes and len(classes) == num_classes else None,
        [[*color] for color in colors] if colors and len(colors) == num_classes else None,
        read(Flag(), "reduce_zero_label"),
    )


def meta_of(description: ModelDescription) -> dict[str, Any]:
    """The entry `meta`, without which mmsegmentation 1.x reads no checkpoint."""
    known = {
        "classes": description.classes,
        "palette": description.colors,
        "reduce_zero_label": description.reduce_zero_label,
    }
    # Without names, mmsegmentation takes those of a data set with as many classes.
    if not description.classes:
        return {}
    return {"dataset_meta": {n: value for n, value in known.items() if value is not None}}
