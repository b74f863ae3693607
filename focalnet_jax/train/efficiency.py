"""How much of the chips a run uses."""

import jax

from focalnet_jax.chips import (
    chip_of,
    count_chips,
    model_flops_utilization,
    peak_memory,
)
from focalnet_jax.tasks.base import Task


class Efficiency:
    """Metrics of use, as far as the chips and the cost of the model are known."""

    def __init__(self, task: Task):
        self._chip = chip_of(jax.devices()[0])
        self._multiply_adds = task.multiply_adds if self._chip else None

    def metrics(self, examples_per_second: float | None) -> dict[str, float]:
        """`train/mfu`, of the bfloat16 peak, and `train/device_memory` in bytes.

        Args:
          examples_per_second: of all chips; None if it isn't known, and then the share
            of the peak is left out.
        """
        memory = peak_memory().items()
        metrics: dict[str, float] = {f"train/{name}": value for name, value in memory}
        if self._chip and self._multiply_adds and examples_per_second is not None:
            metrics["train/mfu"] = model_flops_utilization(
                self._multiply_adds,
                examples_per_second,
                chips=count_chips(jax.devices()),
                peak=self._chip.peak,
            )
        return metrics
