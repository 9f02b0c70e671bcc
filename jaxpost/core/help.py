"""The text of `--help`: every option with its type, meaning, unit and default, a section after another."""

import datetime
import itertools
import textwrap
import typing
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from jaxpost.core.options import Option, union_members
from jaxpost.core.values import bounds

INDENT = 34  # columns for flag and type


def help_text(known: Sequence[Option], command: str, about: str, columns: int) -> str:
    """The whole help of a command, no line longer than `columns`."""
    subject = "".join(f" {option.name.upper()}" for option in known if option.positional)
    lines = [f"usage: jaxpost {command}{subject} [--option VALUE ...]".replace("  ", " "), ""]
    lines += [*textwrap.wrap(about, columns), ""] if about else []
    ordered = sorted(known, key=_section)  # stable: inside a section as the fields stand
    for section, members in itertools.groupby(ordered, key=_section):
        lines.append(f"{section or 'options'}:")
        for option in members:
            lines += _entry(option, columns)
        lines.append("")
    return "\n".join(lines).rstrip()


def _section(option: Option) -> str:
    return option.name.rpartition(".")[0]


def _entry(option: Option, columns: int) -> list[str]:
    left = f"  {option.name.upper()}" if option.positional else f"  {option.flag}{_value_name(option)}"
    if option.is_switch:
        left += f", --no-{option.flag[2:]}"
    meaning = textwrap.wrap(_meaning(option), columns - INDENT, break_on_hyphens=False)
    below = [" " * INDENT + line for line in meaning]
    if len(left) < INDENT:
        return [left.ljust(INDENT) + meaning[0], *below[1:]]
    return [left, *below]


def _value_name(option: Option) -> str:
    """What stands for the value: `{on,off}`, `INT`, `A,B,...`."""
    if option.is_switch:
        return ""
    if option.is_list:
        return " TEXT" if option.verbatim else " A,B,..."
    member = next(member for member in union_members(option.annotation) if member is not NoneType)
    if typing.get_origin(member) is Literal:
        return " {" + ",".join(map(str, typing.get_args(member))) + "}"
    return " " + {int: "INT", float: "NUMBER", Path: "PATH", datetime.date: "YYYY-MM-DD"}.get(member, "TEXT")


def _meaning(option: Option) -> str:
    """What it is, then in brackets: unit, bounds, default."""
    interval, unit = option.metadata.get("range"), option.metadata.get("unit")
    default = "required" if option.default is MISSING else f"default {_shown(option.default)}"
    notes = [unit, bounds(interval) if interval else "", default]
    return f"{option.metadata.get('help', '')} [{', '.join(note for note in notes if note)}]".lstrip()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
