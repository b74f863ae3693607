"""Metrics in the workdir: `metrics.jsonl`, and events for TensorBoard."""

import json
import logging

import jax
import tensorboardX
from etils import epath


class MetricsWriter:
    """Writes on the first process; elsewhere it does nothing.

    Args:
      workdir: where to.
      first_step: the step that a run resumes after: what stands there of later steps is
        cut off, since they will be written again.
    """

    def __init__(self, workdir: epath.Path, *, first_step: int):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._path = workdir / "metrics.jsonl"
        _cut_back(self._path, first_step)
        logging.getLogger("tensorboardX").setLevel(logging.ERROR)
        # `purge_step` has TensorBoard forget what an earlier run wrote from there on.
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=first_step + 1 if first_step else None
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._active:
            self._events.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step."""
        if not self._active:
            return
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()


def _cut_back(path: epath.Path, step: int) -> None:
    """Drops lines of later steps, and a last line that a crash left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            break
    aside = path.parent / f"{path.name}.tmp"
    aside.write_text("".join(kept))
    aside.replace(path)
