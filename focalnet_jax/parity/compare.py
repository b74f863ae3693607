"""How far the outputs of two nets are apart."""

import dataclasses
import math

import numpy as np

# The greatest relative errors that rounding explains. In float32 a FocalNet-T has errors
# of 2e-6, and a wrong GELU, the one approximated by tanh, gives 1e-4.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}
# Below the smallest normal number of float32, JAX rounds to zero and PyTorch does not. So
# an output that is smaller than this everywhere has no digits to compare.
_FLOOR = float(np.finfo(np.float32).tiny / np.finfo(np.float32).eps)


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two outputs of one layer are apart.

    Attributes:
      name: the name of the layer.
      max_error: the greatest |ours - theirs|.
      mean_error: the mean |ours - theirs|.
      relative_error: the greatest |ours - theirs| over the greatest |theirs|, which
        counts as at least `_FLOOR`. Two outputs of zeros have an error of 0.
      cosine: the cosine of the angle between both outputs as vectors; 1 for two outputs
        of zeros, 0 if only one of them is zero.
    """

    name: str
    max_error: float
    mean_error: float
    relative_error: float
    cosine: float


class _Sums:
    """The sums that make a `Difference`, over any number of batches."""

    def __init__(self):
        self.count = 0
        self.errors = self.products = self.squares_ours = self.squares_theirs = 0.0
        self.greatest_error = self.greatest = 0.0

    def add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
        with np.errstate(invalid="ignore"):  # The difference of two infinities is NaN.
            error = np.abs(ours - theirs)
        self.count += error.size
        self.errors += error.sum()
        # numpy's maximum of NaN and a number is NaN; Python's may be the number.
        self.greatest_error = np.maximum(self.greatest_error, error.max())
        self.greatest = np.maximum(self.greatest, np.abs(theirs).max())
        self.products += np.vdot(ours, theirs)
        self.squares_ours += np.vdot(ours, ours)
        self.squares_theirs += np.vdot(theirs, theirs)

    @np.errstate(invalid="ignore")  # What is not finite has neither ratio nor angle.
    def difference(self, name: str) -> Difference:
        return Difference(
            name=name,
            max_error=float(self.greatest_error),
            mean_error=float(self.errors / self.count),
            relative_error=float(self.greatest_error / np.maximum(self.greatest, _FLOOR)),
            cosine=self._cosine(),
        )

    def _cosine(self) -> float:
        # Numbers below 1e-154 have squares of zero, and so may a product of the squares.
        lengths = math.sqrt(self.squares_ours) * math.sqrt(self.squares_theirs)
        if lengths == 0:
            return float(self.squares_ours == self.squares_theirs)
        return float(self.products / lengths)


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compares two arrays of the same shape, in float64."""
    _check_shapes(name, ours, theirs)
    sums = _Sums()
    sums.add(ours, theirs)
    return sums.difference(name)


def _check_shapes(name: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    if ours.shape != theirs.shape:
        raise ValueError(f"{name} has shape {ours.shape} here, {theirs.shape} there")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether two nets are the same up to rounding.

    Attributes:
      differences: one for each layer, in the order of the computation. The logits come
        last.
      top1_agreement: share of images, or of pixels of a segmenter, for which both nets
        give the same class, or two whose logits are within the tolerance of each other.
      tolerance: the greatest allowed relative error of a layer.
    """

    differences: list[Difference]
    top1_agreement: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether every layer is within the tolerance and all classes are the same."""
        return self.first_beyond is None and self.top1_agreement == 1

    @property
    def first_beyond(self) -> Difference | None:
        """The first layer beyond the tolerance, if there is one."""
        # Every comparison with NaN is false, and NaN must count as beyond the tolerance.
        beyond = (d for d in self.differences if not d.relative_error <= self.tolerance)
        return next(beyond, None)

    def __str__(self) -> str:
        worst = max(self.differences, key=lambda d: _nan_last(d.relative_error))
        text = (
            f"{'PASS' if self.passes else 'FAIL'}: the greatest relative error is "
            f"{worst.relative_error:.1e}, in {worst.name} (tolerance "
            f"{self.tolerance:.0e}); top-1 agreement {self.top1_agreement:.1%}"
        )
        if self.first_beyond:
            text += f"; the first layer beyond the tolerance is {self.first_beyond.name}"
        return text


def _nan_last(error: float) -> float:
    """An error by which to sort: NaN is worse than any number."""
    return np.inf if np.isnan(error) else error


class Comparison:
    """Compares two nets layer by layer over batches of images.

    Args:
      tolerance: the greatest allowed relative error of a layer.
    """

    def __init__(self, tolerance: float):
        self._tolerance = tolerance
        self._sums: dict[str, _Sums] = {}
        self._agreements: list[np.ndarray] = []

    def add(self, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
        """Adds the outputs for a batch.

        Args:
          ours: outputs by layer.
          theirs: outputs by layer, `logits` among them. Only these layers are compared.

        Raises:
          ValueError: two outputs of a layer have different shapes.
        """
        for name in theirs:
            _check_shapes(name, ours[name], theirs[name])
            self._sums.setdefault(name, _Sums()).add(ours[name], theirs[name])
        self._agreements.append(self._agree(ours["logits"], theirs["logits"]).ravel())

    def _agree(self, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        """Where both give the same class, unless rounding decides between two."""
        choices = ours.argmax(-1)
        chosen = np.take_along_axis(theirs, choices[..., None], -1)[..., 0]
        with np.errstate(invalid="ignore"):  # The difference of two infinities is NaN.
            behind = theirs.max(-1) - chosen
        is_close = behind <= self._tolerance * np.abs(theirs).max()
        return (choices == theirs.argmax(-1)) | is_close

    def verdict(self) -> Verdict:
        """The verdict on all batches so far."""
        return Verdict(
            [sums.difference(name) for name, sums in self._sums.items()],
            float(np.concatenate(self._agreements).mean()),
            self._tolerance,
        )


def table(differences: list[Difference]) -> str:
    """Makes a text table with a row for each layer."""
    width = max(len(d.name) for d in differences)
    lines = [f"{'layer':{width}}  max error  mean error  relative  cosine"]
    lines += [
        f"{d.name:{width}}  {d.max_error:9.2e}  {d.mean_error:10.2e}  "
        f"{d.relative_error:8.1e}  {d.cosine:.9f}"
        for d in differences
    ]
    return "\n".join(lines)
