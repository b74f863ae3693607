"""How images are seen for evaluation, and the classes of their pixels."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax

from focalnet_jax.heads import Segmenter
from focalnet_jax.heads.views import View, Windows, classes_of, make_view
from focalnet_jax.tasks.base import Batch, Variables


@dataclasses.dataclass(frozen=True)
class Views:
    """How images are seen for evaluation.

    Attributes:
      scales: images are resized to fit into each, as of `resized_size`.
      mirror: whether each is seen mirrored, too.
      windows: in which images are seen; None for whole ones.
      most_canvases: groups of images of similar sizes.
    """

    scales: tuple[tuple[int, int], ...]
    mirror: bool = False
    windows: Windows | None = None
    most_canvases: int = 6


def classes_of_images(
    model: Segmenter,
    variables: Variables,
    batch: Batch,
    *,
    views: Views,
    normalize: Callable[[jax.Array], jax.Array],
    canvas: Sequence[int],
) -> jax.Array:
    """The class of each pixel, int32 `[b, *canvas]`, at the images' original sizes.

    Args:
      model, variables: of the net.
      batch: the arrays of `EvalSegmentation` but for the labels.
      views: how images are seen.
      normalize: makes float images of `uint8 [b, h, w, 3]`.
      canvas: height and width of a canvas for the original images.
    """

    def net(images, valid):
        result, _ = model.apply(variables, images, train=False, valid=valid)
        return result.logits, result.valid

    height, width = canvas
    each: list[View] = []
    for number in range(len(views.scales)):
        suffix = f"_{number}" if number else ""
        view = functools.partial(
            make_view,
            net,
            normalize(batch[f"image{suffix}"]),
            valid=batch[f"valid{suffix}"],
            size=batch["size"],
            canvas=(height, width),
            windows=views.windows,
        )
        each.append(view())
        if views.mirror:
            each.append(view(mirror=True))
    return classes_of(each)
