"""How far two computations of the same thing are apart."""

import dataclasses

import numpy as np

# What rounding explains, relative to the greatest value of a layer. In float32 the sums
# of a FocalNet-T reach 2e-6, and a GELU approximated by tanh makes 1e-4.
TOLERANCES = {"float32": 2e-5, "float64": 1e-10}


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one layer's output.

    Attributes:
      name: of the layer.
      max_error, mean_error: of |ours - theirs|.
      relative_error: the greatest error over the greatest |theirs|.
      cosine: between both as vectors.
    """

    name: str
    max_error: float
    mean_error: float
    relative_error: float
    cosine: float


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compares two arrays of one shape, in float64."""
    if ours.shape != theirs.shape:
        raise ValueError(f"{name} has shape {ours.shape} here, {theirs.shape} there")
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    error = np.abs(ours - theirs)
    norms = np.linalg.norm(ours) * np.linalg.norm(theirs)
    return Difference(
        name=name,
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        relative_error=float(error.max() / np.abs(theirs).max()),
        cosine=float(np.vdot(ours, theirs) / norms),
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether two nets are the same up to rounding.

    Attributes:
      differences: by layer, in the order of the computation; the logits come last.
      top1_agreement: share of images whose class is the same.
      tolerance: on the relative error of each layer.
    """

    differences: list[Difference]
    top1_agreement: float
    tolerance: float

    @property
    def passes(self) -> bool:
        """Whether every layer is within the tolerance; NaN never is."""
        return self.first_beyond is None and self.top1_agreement == 1

    @property
    def first_beyond(self) -> Difference | None:
        """The first layer beyond the tolerance."""
        beyond = (d for d in self.differences if not d.relative_error <= self.tolerance)
        return next(beyond, None)

    def __str__(self) -> str:
        worst = max(self.differences, key=lambda d: d.relative_error)
        text = (
            f"{'PASS' if self.passes else 'FAIL'}: the greatest relative error is "
            f"{worst.relative_error:.1e}, in {worst.name} (tolerance "
            f"{self.tolerance:.0e}); top-1 agreement {self.top1_agreement:.1%}"
        )
        if self.first_beyond:
            text += f"; the first layer beyond the tolerance is {self.first_beyond.name}"
        return text


def compare(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], *, tolerance: float
) -> Verdict:
    """Compares every layer that `theirs` names."""
    differences = [difference(name, ours[name], theirs[name]) for name in theirs]
    agrees = ours["logits"].argmax(-1) == theirs["logits"].argmax(-1)
    return Verdict(differences, float(agrees.mean()), tolerance)


def table(differences: list[Difference]) -> str:
    """A line a layer, in columns."""
    width = max(len(d.name) for d in differences)
    lines = [f"{'layer':{width}}  max error  mean error  relative  cosine"]
    lines += [
        f"{d.name:{width}}  {d.max_error:9.2e}  {d.mean_error:10.2e}  "
        f"{d.relative_error:8.1e}  {d.cosine:.9f}"
        for d in differences
    ]
    return "\n".join(lines)
