"""The exceptions that are messages for the user, and the helper that suggests a spelling."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input or usage is wrong: one line that says what, where, got, expected, what to do.

    The command line prints the message on one line of stderr and exits with status 2.
    """


class RunError(RuntimeError):
    """A run failed, and the message says in one line why: no fault of the input, none of the program.

    The command line prints the message on one line of stderr and exits with status 1.
    """


class Stopped(Exception):
    """A run was stopped from outside and can go on: the message says where it stands and how.

    The command line prints the message and exits with `status`: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def suggestion(name: str, known: Iterable[str]) -> str:
    """` Did you mean "rank"?` for a near miss among `known`, else an empty string.

    >>> suggestion("rnak", ["rank", "alpha"])
    ' Did you mean "rank"?'
    >>> suggestion("zzz", ["rank"])
    ''
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{close[0]}"?' if close else ""
