"""How well labelled regions overlap: intersection over union, and pixel accuracy."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from focalnet_jax.evaluators.details import Details
from focalnet_jax.evaluators.totals import Batch, on_host, totals

# Counts are added in two parts, of which int32 holds the sums over a batch.
_LOW_BITS = 16


class Overlap:
    """Counts every pixel of every image exactly once, over all processes.

    The intersection of a class is the number of pixels where its label is predicted, and
    the union that of pixels where either is the class. They are summed over the split
    before they are divided, as in `IoUMetric` of mmsegmentation, whose metrics these are:

        miou    the mean of intersection / union over classes
        macc    the mean of intersection / labelled pixels over classes
        aacc    the share of all labelled pixels that are predicted rightly

    A class that is neither predicted nor labelled has no IoU, and one that is nowhere
    labelled has no accuracy. Such a class is left out of the mean.

    Args:
      predict: from variables and a batch to labels `[b, h, w]`.
      make_batches: starts anew over the split; batches hold `mask`, and `label`, integer
        `[b, h, w]`; all are global arrays.
      class_names: by label.
      ignored: the label of pixels that don't count.
      shown: the `id` of records that `draw` gets.
      draw: makes a PNG of these records in order, of each the arrays of its row and
        `predicted`.
      remark: ends the text of `details`.
    """

    def __init__(
        self,
        predict: Callable[[Any, Batch], jax.Array],
        make_batches: Callable[[], Iterable[Batch]],
        *,
        class_names: Sequence[str],
        ignored: int,
        shown: Sequence[int] = (),
        draw: Callable[[list[dict[str, np.ndarray]]], bytes] | None = None,
        remark: str = "",
    ):
        self._make_batches = make_batches
        self._class_names = class_names
        self._draw = draw
        self._remark = remark
        self._name = "test"
        self._areas: np.ndarray | None = None
        self._rows: dict[int, dict[str, np.ndarray]] = {}
        wanted = np.asarray(shown if draw else (), np.int32)

        @jax.jit
        def count(variables, batch):
            predicted = predict(variables, batch)
            counted = batch["mask"][:, None, None] & (batch["label"] != ignored)
            areas = areas_of(
                predicted, batch["label"], counted, num_classes=len(class_names)
            )
            parts = jnp.stack([areas >> _LOW_BITS, areas & (2**_LOW_BITS - 1)])
            sums = {"parts": parts.sum(1), "examples": batch["mask"].sum()}
            if not wanted.size:
                return sums, {}
            is_shown = batch["mask"] & jnp.isin(batch["id"], wanted)
            first = jnp.argsort(~is_shown, stable=True)[: wanted.size]
            rows = {**batch, "predicted": predicted, "is_shown": is_shown}
            return sums, {name: array[first] for name, array in rows.items()}

        self._count = count

    def run(
        self,
        variables: Any,
        *,
        name: str = "test",
        before_batch: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[str, float]]:
        """Yields names and values, as shares, and the number of images.

        Where no pixel counts, there is only the number.

        Args:
          variables: those of the model to be evaluated.
          name: that metrics' names begin with.
          before_batch: called before each batch; may raise to end the evaluation.
        """
        self._name, self._areas, self._rows = name, None, {}
        candidates = []

        def count(variables, batch):
            sums, rows = self._count(variables, batch)
            candidates.append(rows)
            # Of the batch before, so that the devices don't wait for this.
            for rows in candidates[:-1]:
                self._keep(rows)
            del candidates[:-1]
            return sums

        sums = totals(count, self._make_batches(), variables, before_batch=before_batch)
        for rows in candidates:
            self._keep(rows)
        high, low = sums["parts"]
        self._areas = (high << _LOW_BITS) + low
        if self._areas[2].any():
            for metric, value in metrics_of(self._areas).items():
                yield f"{name}/{metric}", value
        yield f"{name}/examples", sums["examples"]

    def _keep(self, rows: Batch) -> None:
        """Takes rows that are shown to the host; all processes take part."""
        if not rows:
            return
        is_shown = on_host(rows["is_shown"])
        if not is_shown.any():
            return
        arrays = {name: on_host(array) for name, array in rows.items()}
        del arrays["is_shown"]
        for row in np.flatnonzero(is_shown):
            own = {name: array[row] for name, array in arrays.items()}
            self._rows[int(own["id"])] = own

    def details(self) -> Details | None:
        """A line for each class, and pictures; None before a run has ended."""
        if self._areas is None:
            return None
        lines = table_of(self._areas, self._class_names)
        text = "\n".join([*lines, *([self._remark] if self._remark else [])])
        files = {f"{self._name}_classes.txt": f"{text}\n".encode()}
        if self._draw and self._rows:
            rows = [self._rows[index] for index in sorted(self._rows)]
            files[f"{self._name}_examples.png"] = self._draw(rows)
        return Details(text, files)


def areas_of(
    predicted: jax.Array, labels: jax.Array, counted: jax.Array, *, num_classes: int
) -> jax.Array:
    """The areas of classes in each image, in pixels: int32 `[b, 3, classes]`.

    They are the intersection of prediction and label, what is predicted, and what is
    labelled.

    Args:
      predicted, labels: integer `[b, h, w]`.
      counted: bool `[b, h, w]`, which pixels count.
      num_classes: the number of classes.
    """
    is_right = counted & (predicted == labels)
    chosen = ((is_right, labels), (counted, predicted), (counted, labels))
    # A comparison with every class is faster on accelerators than additions in places
    # that depend on data, and no array of all of them is ever stored.
    return jnp.stack(
        [
            jnp.sum(
                where[..., None] & (classes[..., None] == jnp.arange(num_classes)),
                axis=(1, 2),
                dtype=jnp.int32,
            )
            for where, classes in chosen
        ],
        axis=1,
    )


def metrics_of(areas: np.ndarray) -> dict[str, float]:
    """`miou`, `macc` and `aacc` of areas `[3, classes]`, some of which are labelled."""
    iou, accuracy = by_class(areas)
    return {
        "miou": float(np.nanmean(iou)),
        "macc": float(np.nanmean(accuracy)),
        "aacc": float(areas[0].sum() / areas[2].sum()),
    }


def by_class(areas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IoU and accuracy of each class, NaN where there is none."""
    intersection, predicted, labelled = areas
    with np.errstate(invalid="ignore"):
        iou = intersection / (predicted + labelled - intersection)
        return iou, intersection / labelled


def table_of(areas: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Lines for people: of each class the IoU, the accuracy and its share of pixels."""
    iou, accuracy = by_class(areas)
    share = areas[2] / max(areas[2].sum(), 1)
    width = max(map(len, ("class", *class_names)))
    lines = [f"{'class':{width}}      IoU      Acc   pixels"]
    for name, *values in zip(class_names, iou, accuracy, share):
        shown = "".join(f"{_percent(value):>9}" for value in values)
        lines.append(f"{name:{width}}{shown}")
    return lines


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.2f} %"
