"""`model.json`, which says how to use the parameters beside it."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from etils import epath

from focalnet_jax.errors import OptionError, SetupError, shown
from focalnet_jax.heads import create_segmenter
from focalnet_jax.heads.segmenter import SEGMENTER_VALUES
from focalnet_jax.image_size import LARGEST_SIDE
from focalnet_jax.models import create_backbone, create_masked_model, create_model
from focalnet_jax.models.size import Model
from focalnet_jax.models.variants import ENCODER_OPTIONS
from focalnet_jax.paths import write_json
from focalnet_jax.preprocessing import NEWER, VALUES, Preprocessing
from focalnet_jax.values import Flag, Several, Whole

_FILE = "model.json"
BACKBONE_OPTIONS = frozenset({"out_stages", "out_norm"})
# The option of a model for masked image modelling; its value is True.
RECONSTRUCT = "reconstruct"
# The option of a segmenter; its value is True.
SEGMENT = "segment"
HEAD_OPTIONS = (
    BACKBONE_OPTIONS | {"num_classes", RECONSTRUCT, SEGMENT} | SEGMENTER_VALUES.keys()
)

CLASSIFICATION, MASKED_IMAGE_MODELING = "classification", "masked_image_modeling"
SEMANTIC_SEGMENTATION = "semantic_segmentation"
_TASKS = (CLASSIFICATION, MASKED_IMAGE_MODELING, SEMANTIC_SEGMENTATION)
# Options that say of which task a model is, with the value True.
_TASK_OF_OPTION = {
    RECONSTRUCT: MASKED_IMAGE_MODELING,
    SEGMENT: SEMANTIC_SEGMENTATION,
}

# These may change between runs, because the parameters mean the same with any value.
FREE_OPTIONS = (
    "dtype",
    "param_dtype",
    "drop_rate",
    "drop_path_rate",
    "head_dropout",
    "remat",
    "scan",
    "implementation",
)

# What images fit into in the official evaluation of segmenters.
DEFAULT_SCALE = (2048, 512)

# Entries that only some descriptions have.
_OPTIONAL = ("source", "scale", "colors", "reduce_zero_label")
_SCALE = Several(Whole(1, LARGEST_SIDE), least=2, most=2, noun="list")
_COLOR = Several(Whole(0, 255), least=3, most=3, noun="list")
COLORS = Several(_COLOR, most=2**16, noun="list")


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """The content of a `model.json`.

    Attributes:
      name: the name of the variant.
      overrides: further arguments of `create_model`. If `out_stages` or `out_norm` is
        among them, they are arguments of `create_backbone`, with `reconstruct=True` of
        `create_masked_model`, and with `segment=True` of `create_segmenter`.
      preprocessing: how images are prepared for the model. A segmenter has `scale` in
        place of the size and the crop.
      classes: the names of the classes, if they are known.
      source: where converted parameters come from: `file`, `sha256`, `dialect` and
        `dtype`. If the parameters have several dtypes, `dtype` has one for each.
      scale: of a segmenter: an image is resized to fit into these two sides, the longer
        and the shorter one, in any order.
      colors: of a segmenter: red, green and blue of each class in pictures.
      reduce_zero_label: of a segmenter: whether 0 stands for no class in the masks that
        it was trained on, and 1 for the first class.
    """

    name: str
    overrides: dict[str, Any]
    preprocessing: Preprocessing
    classes: Sequence[str] | None = None
    source: dict[str, Any] | None = None
    scale: Sequence[int] | None = None
    colors: Sequence[Sequence[int]] | None = None
    reduce_zero_label: bool | None = None

    @property
    def task(self) -> str:
        """The task that a model of this kind is for."""
        of_options = (
            task for option, task in _TASK_OF_OPTION.items() if self.overrides.get(option)
        )
        return next(of_options, CLASSIFICATION)

    def create(self, **overrides) -> Model:
        """Makes the model, with some options changed."""
        return create_of_any_kind(self.name, self.overrides | overrides)

    def write(self, directory: epath.Path) -> None:
        """Writes `model.json` into a directory."""
        write_json(directory / _FILE, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        content = {
            "task": self.task,
            "name": self.name,
            "overrides": self.overrides,
            **self.preprocessing.to_json(),
            "classes": self.classes,
        }
        for name in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                content[name] = value
        return content


def create_of_any_kind(name: str, overrides: dict[str, Any]) -> Model:
    """Makes a backbone, a masked model or a segmenter if `overrides` has its option.

    Else it makes a classifier.

    Raises:
      OptionError, ValueError, TypeError: as the function that makes the model, and for
        another value of `reconstruct` or `segment` than True.
    """
    kinds: dict[str, tuple[Callable[..., Model], str]] = {
        RECONSTRUCT: (create_masked_model, "masked image modelling"),
        SEGMENT: (create_segmenter, "semantic segmentation"),
    }
    for kind, (create, purpose) in kinds.items():
        if kind not in overrides:
            continue
        options = dict(overrides)
        if (value := options.pop(kind)) is not True:
            raise OptionError(
                kind,
                f"={shown(value)} says of no kind of model: True is for {purpose}; for a "
                "classifier give num_classes in its place, for a backbone out_stages",
            )
        return create(name, **options)
    is_backbone = BACKBONE_OPTIONS & overrides.keys()
    return (create_backbone if is_backbone else create_model)(name, **overrides)


def changed_options(name: str, model: Model) -> list[str]:
    """The options of its encoder that make a model another net than its variant.

    Args:
      name: of the variant.
      model: any that `create_of_any_kind` makes of the name.
    """
    variant = create_model(name).encoder
    return [
        option
        for option in ENCODER_OPTIONS
        if option not in FREE_OPTIONS
        and getattr(model.encoder, option) != getattr(variant, option)
    ]


def default_preprocessing(name: str, *, segment: bool = False) -> Preprocessing:
    """The preprocessing that the released weights of a variant are for.

    It is the official evaluation, which resizes bicubically and keeps 224 / 256 of the
    shorter side. The image size is the one in the names of the releases.

    Args:
      name: of the variant.
      segment: whether it is a segmenter's: then the size is that of the crops of ADE20K
        that the official recipe trains on, and `DEFAULT_SCALE` is that of evaluation.
    """
    if segment:
        return Preprocessing(image_size=512, interpolation="bilinear", crop=1.0)
    is_384 = name.startswith(("focalnet_large", "focalnet_xlarge"))
    return Preprocessing(image_size=384 if is_384 else 224)


def find_description(path: epath.Path) -> ModelDescription | None:
    """Reads the `model.json` that belongs to parameters; None if there is none.

    Args:
      path: a workdir, its `checkpoints` directory, a checkpoint in that, or a directory
        of converted parameters.

    Raises:
      SetupError: the file describes no model.
    """
    file = description_file(path)
    if file is None:
        return None
    return parse_description(file.read_bytes(), origin=str(file))


def description_file(path: epath.Path) -> epath.Path | None:
    """The file that belongs to parameters at a path as `find_description` takes it."""
    files = (parent / _FILE for parent in (path, path.parent, path.parent.parent))
    return next((file for file in files if file.exists()), None)


def parse_description(text: str | bytes, *, origin: str) -> ModelDescription:
    """Reads the text of a `model.json`.

    Raises:
      SetupError: the text describes no model; the message names `origin` and the entry.
    """
    content = _parse_json(text, origin=origin)
    task = content.get("task", CLASSIFICATION)
    if task not in _TASKS:
        raise SetupError(
            f"{origin} is of the task {task!r}, not of {', '.join(_TASKS[:-1])} or "
            f"{_TASKS[-1]}"
        )
    names = {field.name for field in dataclasses.fields(Preprocessing)}
    needed = names - NEWER | {"name", "overrides"}
    if missing := sorted(needed - content.keys()):
        raise SetupError(
            f"{origin} is no description of a model: it lacks {', '.join(missing)}"
        )
    if unknown := sorted(
        content.keys() - needed - NEWER - {"task", "classes", *_OPTIONAL}
    ):
        raise SetupError(
            f"{origin} has the entry {unknown[0]!r}, which is unknown here: a newer "
            "version may have written it"
        )
    for name, (is_right, allowed) in _CHECKS.items():
        if name in content and not is_right(content[name]):
            raise SetupError(
                f"{origin}: {name} is {str(content[name])[:60]!r}, not {allowed}"
            )
    if len(content["mean"]) != len(content["std"]):
        raise SetupError(f"{origin}: mean and std differ in their number of channels")
    description = ModelDescription(
        preprocessing=Preprocessing.from_json(content),
        **{name: content[name] for name in content.keys() - names - {"task"}},
    )
    try:
        model = description.create()
    except (TypeError, ValueError) as error:
        raise SetupError(f"{origin}: {error}") from error
    if task != description.task:
        raise SetupError(
            f"{origin} is of the task {task!r}, and its overrides are of a model for "
            f"{description.task!r}"
        )
    # A head may have more rows than its data set has classes.
    classes, rows = description.classes or [], getattr(model, "num_classes", 0)
    if len(classes) > rows:
        raise SetupError(
            f"{origin}: classes has {len(classes):,} names, and the model has {rows:,}"
        )
    return description


def _parse_json(text: str | bytes, *, origin: str) -> dict[str, Any]:
    """Reads the text of a JSON object; the message of an error names `origin`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SetupError(f"{origin} is damaged: it is no JSON, {error}") from error
    if not isinstance(content, dict):
        raise SetupError(f"{origin} is no description of a model: it is {content!r:.60}")
    return content


def _is_list_of(values: Any, is_right: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and all(map(is_right, values))


# What the entries of a `model.json` may be, for those that are there.
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    name: (values.allows, str(values)) for name, values in VALUES.items()
} | {
    "image_size": (
        lambda size: not isinstance(size, str) and VALUES["image_size"].allows(size),
        str(VALUES["image_size"]),
    ),
    "name": (lambda name: isinstance(name, str), "the name of a variant"),
    "overrides": (lambda options: isinstance(options, dict), "options of the model"),
    "classes": (
        lambda names: names is None or _is_list_of(names, lambda n: isinstance(n, str)),
        "a list of names",
    ),
    "source": (
        lambda source: source is None or _is_source(source),
        "what convert writes of a file",
    ),
    "scale": (_SCALE.allows, str(_SCALE)),
    "colors": (COLORS.allows, str(COLORS)),
    "reduce_zero_label": (Flag().allows, str(Flag())),
}


def _is_source(source: Any) -> bool:
    if not isinstance(source, dict):
        return False
    dtypes = source.get("dtype", {})
    names = dtypes.values() if isinstance(dtypes, dict) else [dtypes]
    texts = [*names, *(source.get(key, "") for key in ("file", "dialect"))]
    return all(isinstance(text, str) for text in texts) and all(map(_is_dtype, names))


def _is_dtype(name: str) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(name), jnp.floating)
    except TypeError:
        return False


def entries_that_differ(path: epath.Path, content: Mapping[str, Any]) -> list[str]:
    """Compares a `model.json` with what would be written now, of whatever task.

    Args:
      path: as for `find_description`.
      content: the entries now.

    Returns:
      a line for each entry that differs; none where there is no `model.json`.
    """
    for directory in (path, path.parent, path.parent.parent):
        if (directory / _FILE).exists():
            file = directory / _FILE
            there = _parse_json(file.read_bytes(), origin=str(file))
            here = json.loads(json.dumps(content))
            return [
                f"{name}: {there.get(name)} there, {here.get(name)} here"
                for name in sorted(there.keys() | here.keys())
                if there.get(name) != here.get(name)
            ]
    return []


def model_differences(directory: epath.Path, model: Model) -> dict[str, str]:
    """Says how `model` differs from the model of the parameters in `directory`.

    Some options leave no trace in the parameters, so that a wrong value computes
    something else without any error. Without a `model.json` no difference can be seen.

    Args:
      directory: as for `find_description`.
      model: the model that is to take the parameters.

    Returns:
      By option, the value there and the value here, for people.
    """
    description = find_description(directory)
    if description is None:
        return {}
    there = description.create()
    return {
        option: f"{_option(there, option)} there, {_option(model, option)} here"
        for option in (*sorted(HEAD_OPTIONS), *ENCODER_OPTIONS)
        if option not in FREE_OPTIONS and _option(there, option) != _option(model, option)
    }


def _option(model: Model, option: str) -> Any:
    return getattr(model if option in HEAD_OPTIONS else model.encoder, option, None)
