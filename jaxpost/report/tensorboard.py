"""TensorBoard: event files that `tensorboard --logdir` shows, by tensorboardX, without torch or TensorFlow."""

import os
import time
from pathlib import Path
from typing import Any

from jaxpost.report.reporters import Record, tagged


class TensorBoard:
    """Writes scalars into a new event file of a folder, each step flushed.

    Args:
      folder: for the event file; made when missing.
      kept: the last step whose records stay, -1 for none. TensorBoard forgets what older files say of later ones.

    Raises:
      ImportError: tensorboardX is not installed.

    tensorboardX's own SummaryWriter writes from a thread behind a queue: a full disk ends the thread, and the run
    would wait for the queue for ever. Here the error comes to the caller.
    """

    def __init__(self, folder: Path, kept: int = -1):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2, summary_pb2

        messages: Any = (event_pb2, summary_pb2)  # made at run time: no type checker knows what is in them
        self._events, self._summaries = messages
        folder.mkdir(parents=True, exist_ok=True)
        goes_on = any(folder.glob("*.tfevents.*"))  # also where a killed run starts again at 0
        # Names are of whole seconds: two runs in one would write over each other's file.
        self._writer = EventsWriter(str(folder.absolute() / "events"), f".{os.getpid()}.{kept}")
        if goes_on:
            log = self._events.SessionLog(status=self._events.SessionLog.START)
            self._write(kept + 1, session_log=log)

    def write(self, record: Record) -> None:
        values = [self._summaries.Summary.Value(tag=tag, simple_value=number) for tag, number in tagged(record).items()]
        self._write(record["step"], summary=self._summaries.Summary(value=values))

    def sync(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **content: Any) -> None:
        self._writer.write_event(self._events.Event(step=step, wall_time=time.time(), **content))
        self.sync()
