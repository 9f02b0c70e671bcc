"""The process in which queries run that nobody has read: started for a batch, killed when a query hangs, then gone."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpost.rewards.sql_result import Result

WORKER = Path(__file__).with_name("sql_worker.py")
# All that the process inherits: what some systems need to start Python at all.
INHERITED = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What one query may take. A query that takes more has failed."""

    seconds: float = 1.0  # of processor time
    wall_seconds: float = 10.0  # after which the process is killed, whatever it does
    rows: int = 1000  # of the result
    result_bytes: int = 1_000_000  # of the result, and of any single text or blob on the way
    query_bytes: int = 4000
    memory_bytes: int = 64 << 20


class ProcessFailed(RuntimeError):
    """The process could not be started: a fault of the machine, not of the query."""


class SqlProcess:
    """Runs queries in another process, read-only and within limits; a context manager after which nothing is left.

    One object belongs to one thread; several may live at once.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "SqlProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()

    def run(self, database: str | os.PathLike[str], query: str) -> Result | None:
        """The result of `query` on the SQLite file `database`, or None where it fails or takes more than it may.

        Raises:
          ProcessFailed: no process could be started.
        """
        process = self._started()
        # immutable: neither a lock nor a journal is made beside the file.
        uri = f"{Path(database).absolute().as_uri()}?mode=ro&immutable=1"
        reply = self._ask(process, {"database": uri, "query": query}, self._limits.wall_seconds)
        if reply is None:
            self._kill()
            return None
        return None if "error" in reply else _result(reply)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = [sys.executable, "-I", "-S", str(WORKER)]
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env={name: os.environ[name] for name in INHERITED if name in os.environ},
                    cwd=WORKER.anchor,
                    start_new_session=True,  # Ctrl-C is for the trainer, which then ends this
                )
            except OSError as error:
                raise ProcessFailed(f"cannot start {sys.executable}: {error}") from error
            # The clock of the start is generous: a busy machine must not look like a broken one.
            if self._ask(self._process, dataclasses.asdict(self._limits), 60.0) is None:
                self._kill()
                raise ProcessFailed("the process that runs SQL did not start")
        return self._process

    def _ask(self, process: subprocess.Popen[bytes], message: Any, seconds: float) -> dict[str, Any] | None:
        """One line out, one line back; None where the process ends, or is ended after `seconds`."""
        assert process.stdin and process.stdout, "both are pipes"
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            return None
        finally:
            timer.cancel()
        return json.loads(line) if line.endswith(b"\n") else None

    def _kill(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.communicate()


def _result(reply: dict[str, Any]) -> Result:
    rows: Sequence[tuple[Any, ...]] = [
        tuple(bytes.fromhex(value["hex"]) if isinstance(value, dict) else value for value in row)
        for row in reply["rows"]
    ]
    return Result(columns=reply["columns"], rows=rows, reads=reply["reads"])
