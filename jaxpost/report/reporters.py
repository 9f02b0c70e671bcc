"""One interface for everything that is told of a run while it goes on."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

Record = Mapping[str, Any]
Say = Callable[[str], None]
Value = TypeVar("Value")
EVAL = "eval_"


class Reporter(Protocol):
    """Takes the records of a run in order, each {"step": n, name: number or None}; may raise what it likes."""

    def write(self, record: Record, /) -> None: ...

    def sync(self) -> None:
        """Everything written so far is safe when this returns, as far as the reporter can see to it."""
        ...

    def close(self) -> None: ...


class Reporters:
    """Passes each record on to several reporters. One that fails is said once and left out from then on.

    A full disk under the events or a server that is away is no reason to lose a run of days.

    Args:
      makers: name for messages -> what opens the reporter.
      say: prints one line.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Reporter]], say: Say):
        self._say = say
        self._open: dict[str, Reporter] = {}
        for name, make in makers.items():
            reporter = attempt(f"no more records for {name}", make, say)
            if reporter is not None:
                self._open[name] = reporter

    def write(self, record: Record) -> None:
        self._each(lambda reporter: reporter.write(record))

    def sync(self) -> None:
        self._each(lambda reporter: reporter.sync())

    def close(self) -> None:
        self._each(lambda reporter: reporter.close())
        self._open.clear()

    def __enter__(self) -> "Reporters":
        return self

    def __exit__(self, *_: Any) -> None:
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
        reason = " ".join(str(error).split())[:300]
        say(f"{otherwise}: {type(error).__name__}{': ' if reason else ''}{reason}")
        return None


def tagged(record: Record) -> dict[str, float]:
    """The numbers of a record under the field's tags, those of the Trainer of transformers.

    >>> tagged({"step": 3, "loss": 0.5, "eval_loss": 0.7, "grad_norm": None})
    {'train/loss': 0.5, 'eval/loss': 0.7}
    """
    numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, int | float)}
    return {f"eval/{k.removeprefix(EVAL)}" if k.startswith(EVAL) else f"train/{k}": v for k, v in numbers.items()}
