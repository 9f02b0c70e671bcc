"""One interface for everything that is told of a run while it goes on."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxpost.core.errors import RunError

Record = Mapping[str, Any]
Say = Callable[[str], None]
Value = TypeVar("Value")
EVAL = "eval_"


@runtime_checkable
class Reporter(Protocol):
    """Takes the records of a run in order, each {"step": n, name: number or None}; may raise what it likes."""

    def write(self, record: Record, /) -> None: ...

    def sync(self) -> None:
        """Everything written so far is safe when this returns, as far as the reporter can see to it."""
        ...

    def close(self) -> None: ...


class Persistent:
    """A reporter that loses no record: what it could not write is kept, and written before the next one.

    Args:
      name: for messages.
      reporter: whose `write` takes a record whole or raises OSError and takes nothing of it.
      say: prints one line, when writing begins to fail and when it works again.
    """

    def __init__(self, name: str, reporter: Reporter, say: Say):
        self._name, self._reporter, self._say = name, reporter, say
        self._waiting: list[Record] = []

    def write(self, record: Record) -> None:
        failing = bool(self._waiting)
        self._waiting.append(record)
        try:
            self._write_waiting()
        except OSError as error:
            if not failing:
                self._say(f"{self._name}: {_reason(error)}; its records are kept and tried again with each step")
        else:
            if failing:
                self._say(f"{self._name}: the records that were kept are written")

    def sync(self) -> None:
        """Everything is on the disk; RunError where that cannot be."""
        try:
            self._write_waiting()
            self._reporter.sync()
        except OSError as error:
            raise RunError(
                f"{self._name} must hold a record of each step, and cannot be written: {_reason(error)}. Free space or "
                "mend the disk, then go on with `--resume`."
            ) from error

    def close(self) -> None:
        """Writes what it can."""
        attempt(f"{self._name}: not all records are written", self._write_waiting, self._say)
        attempt(f"{self._name}: not closed", self._reporter.close, self._say)

    def _write_waiting(self) -> None:
        while self._waiting:
            self._reporter.write(self._waiting[0])
            del self._waiting[0]


class Reporters:
    """Passes each record on to one reporter that has to take it, and to others that may fail.

    A full disk under the events or a server that is away is no reason to lose a run of days: one of the others that
    fails is said once and left out from then on.

    Args:
      needed: its errors are the caller's; synced at the end of a block that has no error of its own.
      makers: name for messages -> what opens one of the others.
      say: prints one line.
    """

    def __init__(self, needed: Reporter, makers: Mapping[str, Callable[[], Reporter]], say: Say):
        self._needed, self._say = needed, say
        self._open: dict[str, Reporter] = {}
        for name, make in makers.items():
            reporter = attempt(f"no more records for {name}", make, say)
            if reporter is not None:
                self._open[name] = reporter

    def write(self, record: Record) -> None:
        self._needed.write(record)
        self._each(lambda reporter: reporter.write(record))

    def sync(self) -> None:
        self._needed.sync()
        self._each(lambda reporter: reporter.sync())

    def close(self) -> None:
        self._needed.close()
        self._each(lambda reporter: reporter.close())
        self._open.clear()

    def __enter__(self) -> "Reporters":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        try:
            if error is None:
                self._needed.sync()
        finally:
            self.close()

    def _each(self, act: Callable[[Reporter], None]) -> None:
        for name, reporter in list(self._open.items()):
            done = attempt(f"no more records for {name}", lambda reporter=reporter: act(reporter) or True, self._say)
            if done is None:
                del self._open[name]


def attempt(otherwise: str, act: Callable[[], Value], say: Say) -> Value | None:
    """What `act` returns; None after an error, which is said in one line that begins with `otherwise`.

    >>> attempt("no plot", lambda: 1 / 0, print)
    no plot: ZeroDivisionError: division by zero
    """
    try:
        return act()
    except Exception as error:  # foreign code: whatever it raises, the run goes on
        say(f"{otherwise}: {_reason(error)}")
        return None


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}{': ' if words else ''}{words}"


def tagged(record: Record) -> dict[str, float]:
    """The numbers of a record under the field's tags, those of the Trainer of transformers.

    >>> tagged({"step": 3, "loss": 0.5, "eval_loss": 0.7, "grad_norm": None})
    {'train/loss': 0.5, 'eval/loss': 0.7}
    """
    numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
    return {f"eval/{k.removeprefix(EVAL)}" if k.startswith(EVAL) else f"train/{k}": v for k, v in numbers.items()}
