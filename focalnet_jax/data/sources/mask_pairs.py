"""Folders of images and of their masks, as sequences of records with encoded images."""

import operator
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from focalnet_jax.data.sources.fingerprint import contents_digest, digest
from focalnet_jax.data.sources.mask_layout import Side, find_sides
from focalnet_jax.errors import SetupError, argument, counted, first_few


class MaskPairs(Sequence):
    """Records `{"image": encoded bytes, "mask": encoded bytes, "file_name": str}`.

    They are sorted by the paths of the images. A file is read when its record is asked
    for.

    Attributes:
      root: the folder.
      remarks: what is left out, and what is missing, as lines for people.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        split: str,
        images: str | None = None,
        masks: str | None = None,
        allowed: int | None = 0,
    ):
        """Lists the files.

        Args:
          root: the folder.
          split: a directory of images and one of masks, or what stands for `{split}` in
            the patterns.
          images: a pattern of the images' paths in the folder; None for one of the usual
            layouts, `images/SPLIT/...` and `annotations/SPLIT/...`. See `mask_layout`.
          masks: the pattern of the masks' paths.
          allowed: how many images may lack a mask; None for none, whatever is set.

        Raises:
          SetupError: there is no such split, it has no images, or too many of them lack a
            mask.
        """
        self.root = pathlib.Path(root)
        image_side, mask_side = find_sides(
            self.root, split=split, images=images, masks=masks
        )
        image_of, mask_of = image_side.files, mask_side.files
        order = sorted(image_of, key=lambda key: os.fsencode(image_of[key]))
        self._images = [image_of[key] for key in order]
        # A mask that isn't there is None.
        self._masks = [mask_of.get(key) for key in order]
        lacking = [key for key in order if key not in mask_of]
        others = sorted(mask_of[key] for key in mask_of.keys() - image_of.keys())
        self.remarks = (*image_side.remarks, *mask_side.remarks)
        if lacking:
            self._check_lacking(lacking, image_side, mask_side, others, allowed)
            self.remarks += (
                f"{counted(len(lacking), 'image')} of {self.root} without a mask, such "
                f"as {image_of[lacking[0]]!r}, will be skipped as bad records",
            )
        if others:
            self.remarks += (
                f"{counted(len(others), 'mask')} of {self.root} left out, for want of "
                f"an image: {first_few(others)}",
            )

    def _check_lacking(
        self,
        lacking: list[Any],
        images: Side,
        masks: Side,
        others: list[str],
        allowed: int | None,
    ) -> None:
        if len(lacking) <= (allowed or 0) and len(lacking) < len(self._images):
            return
        names = [images.files[key] for key in lacking]
        text = (
            f"{counted(len(lacking), 'image')} of the {len(self._images):,} in "
            f"{self.root} {'lacks its mask' if len(lacking) == 1 else 'lack their masks'}"
            f": {first_few(names)}. The mask of the first would be "
            f"{masks.path_of(lacking[0])!r}"
        )
        if others:
            text += f", and there is, for one, {others[0]!r}, which has no image"
        if len(lacking) == len(self._images):
            raise SetupError(
                f"{text}. {argument('images')} and {argument('masks')} are patterns that "
                "say which image has which mask: 'images/{split}/*.jpg' and "
                "'masks/{split}/*_mask.png'"
            )
        text += ". Complete the masks, or move these images away"
        if allowed is not None:
            skip = f"{argument('max_bad_records')}={len(lacking)}"
            text += f"; with {skip} or more they are skipped"
        raise SetupError(text)

    def __len__(self) -> int:
        return len(self._images)

    # A folder has no slices.
    def __getitem__(self, index: int) -> dict[str, Any]:  # type: ignore[override]
        """Reads both files and makes them a record.

        Raises:
          OSError: one can't be read, or there is no mask.
        """
        if self.mask_name(index) is None:
            raise FileNotFoundError("there is no mask for the image")
        return {
            "image": self.path(index).read_bytes(),
            "mask": self.mask_path(index).read_bytes(),
            "file_name": self.file_name(index),
        }

    def path(self, index: int) -> pathlib.Path:
        """The path of an image."""
        return self.root / self.file_name(index)

    def file_name(self, index: int) -> str:
        """The path of an image within the folder."""
        return self._images[self._position(index)]

    def mask_name(self, index: int) -> str | None:
        """The path of a mask within the folder; None if there is none."""
        return self._masks[self._position(index)]

    def mask_path(self, index: int) -> pathlib.Path:
        """The path of a mask, which is there."""
        mask = self.mask_name(index)
        assert mask is not None
        return self.root / mask

    def fingerprint(self) -> dict[str, str]:
        """What tells these images and masks from others, as `ImageFolder.fingerprint`."""
        files = [name or "" for pair in zip(self._images, self._masks) for name in pair]
        return {
            "names": digest(*map(os.fsencode, files)),
            "contents": contents_digest(len(files), lambda i: self.root / files[i]),
        }

    def _position(self, index: int) -> int:
        """An index from 0 on, for one that may count from the end."""
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.root} has {len(self)} images, but none at {index}")
        return index % len(self)
