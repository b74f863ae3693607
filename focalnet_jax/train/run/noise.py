"""What libraries print of a failure that the program itself tells in one line."""

import asyncio
import asyncio.log
import errno
import pathlib
import threading

from absl import logging

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def leave_out_noise() -> None:
    """Leaves out the stacks of threads whose errors reach the main thread, too."""
    # For a damaged checkpoint, a task of each array fails; the first error says enough.
    asyncio.log.logger.setLevel("CRITICAL")
    asyncio.set_event_loop_policy(_Policy())
    logging.get_absl_logger().addFilter(_is_no_stack_of_orbax)
    logging.get_absl_logger().addFilter(_is_no_search_of_tfds)
    threading.excepthook = _show


def _is_no_stack_of_orbax(record) -> bool:
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


def _is_no_search_of_tfds(record) -> bool:
    # It warns of each data set that is not prepared yet.
    return not str(record.msg).startswith("Variant folder %s")


def _show(failed) -> None:
    # The thread that writes for TensorBoard meets a full disk.
    if getattr(failed.exc_value, "errno", None) not in FULL_DISK:
        threading.__excepthook__(failed)


class _Loop(asyncio.SelectorEventLoop):
    """A loop to which it is no error to come too late.

    When an array of a checkpoint can't be written, Orbax ends the loop. The store goes on
    telling it of the other arrays, and prints a stack for each.
    """

    # The class above has a generic signature; all that it takes is handed on.
    def call_soon_threadsafe(self, *arguments, **options):  # type: ignore[override]
        try:
            return super().call_soon_threadsafe(*arguments, **options)
        except RuntimeError:
            if not self.is_closed():
                raise
            return None


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()
