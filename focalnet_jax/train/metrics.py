"""Metrics in the workdir: `metrics.jsonl`, and events for TensorBoard."""

import json
import time

import jax
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


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
        is_restart = any(workdir.glob("events.out.tfevents*"))
        self._events = EventFileWriter(str(workdir))
        if is_restart:
            # Has TensorBoard forget what earlier files hold from this step on.
            start = SessionLog(status=SessionLog.START)
            self._add_event(first_step + 1, session_log=start)

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
            file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
        values = [Summary.Value(tag=name, simple_value=v) for name, v in metrics.items()]
        self._add_event(step, summary=Summary(value=values))
        self._events.flush()

    def _add_event(self, step: int, **content) -> None:
        self._events.add_event(Event(step=step, wall_time=time.time(), **content))


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
