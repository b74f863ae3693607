"""What a trained net says of images, and what that counts to."""

import collections
import math
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from focalnet_jax.data.sources.listed import Listed
from focalnet_jax.errors import SetupError
from focalnet_jax.predict import classify
from focalnet_jax.pretrained import Pretrained

# How many standard deviations a normal variable is off the mean in 5 of 100 cases.
_Z = 1.96


class Answer(NamedTuple):
    """What a net says of an image.

    Attributes:
      file: the path of the image within the folder.
      truth: the label of its class.
      answer: the label that the net gives it.
      probability: that the net gives to its answer.
      probability_of_truth: that it gives to the image's class.
    """

    file: str
    truth: int
    answer: int
    probability: float
    probability_of_truth: float


class OfClass(NamedTuple):
    """How a class comes out.

    Attributes:
      name: of the class.
      trained: how many of its images were trained on.
      tested: how many of its images were tested.
      right: to how many of these the net gives this class.
      given: to how many images of all classes the net gives this class.
    """

    name: str
    trained: int
    tested: int
    right: int
    given: int


class Results(NamedTuple):
    """The answers for all images of a split.

    Attributes:
      classes: the name of each class, by label.
      answers: one for each image.
    """

    classes: tuple[str, ...]
    answers: list[Answer]

    @property
    def right(self) -> int:
        """The number of images whose class the net tells."""
        return sum(answer.answer == answer.truth for answer in self.answers)

    @property
    def accuracy(self) -> float:
        """The share of the images whose class the net tells; 0 of no images."""
        return self.right / len(self.answers) if self.answers else 0.0

    @property
    def mistakes(self) -> list[Answer]:
        """The wrong answers, the most confident one first."""
        wrong = [answer for answer in self.answers if answer.answer != answer.truth]
        return sorted(wrong, key=lambda answer: (-answer.probability, answer.file))

    def confusion(self) -> np.ndarray:
        """How many images of each class get which answer, int `[truth, answer]`."""
        counts = np.zeros((len(self.classes),) * 2, int)
        for answer in self.answers:
            counts[answer.truth, answer.answer] += 1
        return counts

    def by_class(self, rows: Sequence[Listed]) -> list[OfClass]:
        """How each class comes out, the one with the lowest accuracy first.

        Args:
          rows: of the list of images, which has those that were trained on.
        """
        trained = collections.Counter(
            row.class_name for row in rows if row.split == "train"
        )
        counts = self.confusion()
        found = [
            OfClass(
                name,
                trained[name],
                int(counts[label].sum()),
                int(counts[label, label]),
                int(counts[:, label].sum()),
            )
            for label, name in enumerate(self.classes)
        ]
        # Those that aren't tested come last.
        return sorted(
            found, key=lambda c: (c.right / c.tested if c.tested else 2, -c.tested)
        )


def answers_of(
    net: Pretrained, root: pathlib.Path, rows: Sequence[Listed], *, batch_size: int
) -> Results:
    """Has a net predict the classes of images.

    Args:
      net: whose classes are those of the images.
      root: the folder of the images.
      rows: the images.
      batch_size: how many are computed at a time.

    Raises:
      SetupError: an image can't be read any more.
    """
    classes = net.classes or ()
    label_of = {name: label for label, name in enumerate(classes)}
    images = [str(root / row.file) for row in rows]
    answers = []
    found = classify(net, images, topk=len(classes), batch_size=batch_size)
    for row, result in zip(rows, found):
        if result.problem:
            raise SetupError(f"{result.image} can't be read any more: {result.problem}")
        truth = label_of[row.class_name]
        probabilities = {p.index: p.probability for p in result.predictions}
        best = result.predictions[0]
        answers.append(
            Answer(row.file, truth, best.index, best.probability, probabilities[truth])
        )
    return Results(classes, answers)


def interval(right: int, count: int) -> tuple[float, float]:
    """Between which shares the accuracy on new images lies, 95 times of 100.

    It is Wilson's interval, which is good for few images, too.

    Args:
      right: the number of right answers.
      count: the number of images, at least 1.
    """
    share = right / count
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count)
    half *= math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)
