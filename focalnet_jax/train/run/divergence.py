"""Steps whose loss, gradient or weights are not finite."""

import collections
import math
from collections.abc import Callable

from focalnet_jax.errors import SetupError
from focalnet_jax.train.step import Metrics


class NonFiniteSteps:
    """Counts such steps, and stops a run that has more of them than are allowed.

    They have left parameters and optimiser as they were: see `make_train_step`. Weights
    that are not finite after a step whose gradient was finite end a run at once, for no
    later step could mend them.

    Args:
      allowed: how many there may be.
      say: is called with a line about each.
      describe_newest_checkpoint: says from where one can go on, for the message.

    Attributes:
      count: how many there were since the run was started or resumed.
    """

    def __init__(
        self,
        allowed: int,
        *,
        say: Callable[[str], None],
        describe_newest_checkpoint: Callable[[], str],
    ):
        self.count = 0
        self._allowed = allowed
        self._say = say
        self._describe_newest_checkpoint = describe_newest_checkpoint
        self._unseen: collections.deque[tuple[int, Metrics]] = collections.deque()

    def add(self, step: int, metrics: Metrics) -> None:
        """Notes the metrics of a step, which the devices may still be computing.

        Then it waits for those of the step before and looks at them. So the devices work
        on one step while the next one is prepared, and on no more than that.

        Raises:
          SetupError: one such step too many.
        """
        self._unseen.append((step, metrics))
        while len(self._unseen) > 1:
            self._look()

    def look_at_all(self) -> None:
        """Waits for the last step, too, and looks at it; raises as `add` does."""
        while self._unseen:
            self._look()

    def _look(self) -> None:
        step, metrics = self._unseen.popleft()
        values = {name: value.item() for name, value in metrics.items()}
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        self.count += 1
        first = wrong[0].replace("_", " ")  # The other metrics follow from this one.
        what = f"the {first} of step {step:,} is {values[wrong[0]]}"
        if wrong == ["weight_norm"]:
            raise SetupError(
                f"{what}; {self._describe_newest_checkpoint()}. A lower learning_rate "
                "may help"
            )
        if self.count <= self._allowed:
            self._say(f"{what}; skipped ({self.count} of {self._allowed})")
            return
        raise SetupError(
            f"{what}; {self._describe_newest_checkpoint()}. A lower learning_rate, a "
            "longer warmup or a smaller clip_norm may help; max_nonfinite_steps="
            f"{self._allowed} such steps are skipped"
        )
