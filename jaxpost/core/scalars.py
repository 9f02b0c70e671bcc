"""One text to one plain value; a text that is not of the type raises ValueError."""

import datetime
import math
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any

TRUE = ("true", "on", "yes")
FALSE = ("false", "off", "no")


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        number = float(text)  # 8.0 and 1e3 are integers too
        if not number.is_integer():
            raise
        return int(number)


def _number(text: str) -> float:
    number = float(text.replace(".inf", "inf"))
    if math.isnan(number):
        raise ValueError("not a number")
    return number


def _boolean(text: str) -> bool:
    if text.lower() not in TRUE + FALSE:
        raise ValueError("not a boolean")
    return text.lower() in TRUE


def _path(text: str) -> Path:
    if not text:
        raise ValueError("an empty path would be the current folder")
    return Path(text)


def _day(text: str) -> datetime.date:
    day = datetime.date.fromisoformat(text)
    if str(day) != text:  # 20250131 and 2025-W05-5 are days to Python
        raise ValueError("not written as YYYY-MM-DD")
    return day


# type -> (its name in messages, its reading)
SCALARS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("an integer", _integer),
    float: ("a number", _number),
    bool: ("true or false", _boolean),
    str: ("a text", str),
    Path: ("a path", _path),
    datetime.date: ("a day (YYYY-MM-DD)", _day),
    NoneType: ("none", str),
}
