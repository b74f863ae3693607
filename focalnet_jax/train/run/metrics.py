"""Metrics in the workdir: `metrics.jsonl`, events for TensorBoard; and W&B."""

import contextlib
import json
import math
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from focalnet_jax.errors import SetupError, shown
from focalnet_jax.paths import errors_named, is_remote, write_whole
from focalnet_jax.train.run.summary import METRICS, Picture, read_lines, write_summary

_UPLOAD_SECONDS = 30


class MetricsWriter:
    """Writes on the first process; elsewhere it does nothing.

    Objects in a bucket can't be added to. There, files are written on this machine, and
    go up whole from time to time.

    Args:
      workdir: where to.
      first_step: the step that a run resumes after. What stands there of later steps is
        cut off, since it will be written again.
      wandb_project: of Weights & Biases, which then gets the metrics, too.
      config: shown by W&B.

    Attributes:
      remarks: on what stood there, as lines for people.

    Raises:
      SetupError: W&B is asked for and not installed.
    """

    def __init__(
        self,
        workdir: epath.Path,
        *,
        first_step: int,
        wandb_project: str | None = None,
        config: dict[str, Any] | None = None,
    ):
        self.remarks: tuple[str, ...] = ()
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._workdir = workdir
        self._spool = None
        if is_remote(workdir):
            self._spool = pathlib.Path(tempfile.mkdtemp(prefix="focalnet_jax_metrics_"))
            self._uploaded = time.monotonic()
        self._directory = self._spool or workdir
        if (workdir / METRICS).exists():
            self._cut_back(first_step)
        is_restart = any(workdir.glob("events.out.tfevents*"))
        self._events = EventFileWriter(str(self._directory))
        if is_restart:
            # This makes TensorBoard forget what earlier files hold from this step on.
            start = SessionLog(status=SessionLog.START)
            self._add_event(first_step + 1, session_log=start)
        self._wandb = None
        if wandb_project:
            self._wandb = _wandb_run(workdir, wandb_project, config)

    def _cut_back(self, step: int) -> None:
        """Leaves out lines of later steps, and those that are none."""
        lines = read_lines(self._workdir / METRICS)
        if lines.bad:
            self.remarks += (
                f"{self._workdir / METRICS} was damaged: {len(lines.bad):,} of its lines "
                f"are no metrics, the first is line {lines.bad[0]:,}; they are left out",
            )
        kept = [line for line in lines.good if json.loads(line)["step"] <= step]
        text = "".join(f"{line}\n" for line in kept)
        write_whole(self._directory / METRICS, text)

    def __enter__(self):
        return self

    def __exit__(self, error_type, *_):
        if not self._active:
            return
        with contextlib.ExitStack() as stack:  # Does each, whatever happens to others.
            if self._wandb:
                stack.callback(self._wandb.finish, exit_code=int(error_type is not None))
            if self._spool:
                stack.callback(shutil.rmtree, self._spool)
            stack.callback(self.flush)
            stack.callback(self._events.close)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds the metrics of a step, but for those that aren't finite."""
        if not self._active:
            return
        metrics = {name: v for name, v in metrics.items() if math.isfinite(v)}
        values = [Summary.Value(tag=name, simple_value=v) for name, v in metrics.items()]
        path = self._directory / METRICS
        with errors_named(path):
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **metrics}, allow_nan=False) + "\n")
            self._add_event(step, summary=Summary(value=values))
            self._events.flush()
        if self._wandb:
            self._wandb.log(metrics, step=step)
        if self._spool and time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Returns when all that was written is in the workdir."""
        if not self._active or not self._spool:
            return
        for path in self._spool.iterdir():
            target = self._workdir / path.name
            with errors_named(target):
                target.write_bytes(path.read_bytes())
        self._uploaded = time.monotonic()

    def summarize(self, *, title: str, pictures: Sequence[Picture]) -> None:
        """Draws `summary.html`."""
        if self._active:
            self.flush()
            write_summary(self._workdir, title=title, pictures=pictures)

    def _add_event(self, step: int, **content) -> None:
        self._events.add_event(Event(step=step, wall_time=time.time(), **content))


def _wandb_run(workdir: epath.Path, project: str, config: dict[str, Any] | None) -> Any:
    """The run of W&B that belongs to a workdir; a resumed one goes on."""
    try:
        import wandb
    except ImportError as error:
        raise SetupError(
            f"wandb_project={project!r} needs W&B, which is not there:\n"
            "  pip install wandb"
        ) from error
    path = workdir / "wandb_run_id"
    if not path.exists():
        write_whole(path, uuid.uuid4().hex[:8])
    run_id = path.read_bytes().decode("utf-8", "replace").strip()
    if not re.fullmatch(r"[\w-]{1,64}", run_id, re.ASCII):
        raise SetupError(
            f"{path} is damaged: it holds {shown(run_id)}, and no id of a run. Move it "
            "away to go on under a new one"
        )
    return wandb.init(
        project=project,
        id=run_id,
        name=workdir.name,
        config=config,
        resume="allow",
    )
