"""Texts to values: what the text of a flag or of a YAML scalar means for the type of an option.

Flags and YAML share this one reading, so a value means the same in both. YAML's own guess is not used: in YAML 1.1
`2e-5` is a string and `off` a boolean, whatever the option is.
"""

import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal, NamedTuple, NoReturn

from jaxpost.core.errors import InputError, suggestion
from jaxpost.core.options import union_members
from jaxpost.core.scalars import FALSE, SCALARS, TRUE

NONE = ("none", "null")


class Text(NamedTuple):
    """A value as the user wrote it."""

    text: str | None  # None: YAML's null
    where: str  # for messages: "at run.yaml line 3", "on the command line"
    quoted: bool = False  # in YAML: then "none" is a text like any other


Raw = Text | list[Text]


def convert(raw: Raw, annotation: Any, name: str, interval: str = "") -> Any:
    """The value of `raw` for the type `annotation`.

    Args:
      raw: one text, or a list of them for a tuple (a single text is split at its commas there).
      annotation: int, float, bool, str, Path, date, Literal[...], tuple[X, ...] or a union of these, None among them.
      name: the option as the user spells it, for messages.   interval: numbers must lie in it, "[0, 1)".

    Raises:
      InputError: names the option, what was got and what is expected.
    """
    none_first = sorted(union_members(annotation), key=lambda member: member is not NoneType)  # before str takes it
    for member in none_first:
        try:
            value = _convert_member(raw, member)
        except ValueError:
            continue
        if not all(_inside(number, interval) for number in (value if isinstance(value, tuple) else (value,))):
            _refuse(raw, bounds(interval), name)
        return value
    _refuse(raw, expected(annotation), name, _choices(annotation))


def expected(annotation: Any) -> str:
    """What messages and `--help` say a value must be.

    >>> expected(int | None), expected(Literal["on", "off"])
    ('an integer or none', 'on or off')
    """
    return " or ".join(_expected_member(member) for member in union_members(annotation))


def split(text: str) -> list[str]:
    """The items of a comma list. A text that starts with `re:` is one regular expression, commas and all.

    >>> split("q_proj, v_proj"), split("re:layers.{1,2}")
    (['q_proj', 'v_proj'], ['re:layers.{1,2}'])
    """
    if text.startswith("re:"):
        return [text]
    return [item for part in text.split(",") if (item := part.strip())]


def _expected_member(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        return " or ".join(str(choice) for choice in typing.get_args(member))
    if typing.get_origin(member) is tuple:
        return f"a list, each item {expected(typing.get_args(member)[0])}"
    return SCALARS[member][0]


def _choices(annotation: Any) -> list[str]:
    literals = [member for member in union_members(annotation) if typing.get_origin(member) is Literal]
    return [str(choice) for literal in literals for choice in typing.get_args(literal)]


def _convert_member(raw: Raw, member: Any) -> Any:
    """The value for one member of the union; ValueError where the text is not of that type."""
    if typing.get_origin(member) is tuple:
        return tuple(_convert_member(item, typing.get_args(member)[0]) for item in _items(raw))
    if isinstance(raw, list):
        raise ValueError("a list")
    if member is NoneType:
        return _none(raw)
    if raw.text is None:
        raise ValueError("null")
    if typing.get_origin(member) is Literal:
        return _literal(raw.text, typing.get_args(member))
    return SCALARS[member][1](raw.text)


def _items(raw: Raw) -> list[Text]:
    if isinstance(raw, list):
        return raw
    if raw.text is None:
        raise ValueError("null")
    return [raw._replace(text=item) for item in split(raw.text)]


def _none(raw: Text) -> None:
    if raw.text is not None and (raw.quoted or raw.text.lower() not in NONE):
        raise ValueError("not none")


def _literal(text: str, choices: Sequence[Any]) -> Any:
    """The choice spelled `text`; a boolean word also stands for its like: YAML's `true` for `on`."""
    spelled = {str(choice): choice for choice in choices}
    for words in ((text,), TRUE, FALSE):
        if text in words or text.lower() in words:
            for word in words:
                if word in spelled:
                    return spelled[word]
    raise ValueError("none of the choices")


def bounds(interval: str) -> str:
    """An interval in words.

    >>> bounds("[1, inf)"), bounds("[0, 1)")
    ('>= 1', '>= 0 and < 1')
    """
    low, high = (end.strip() for end in interval[1:-1].split(","))
    above = f"{'>=' if interval[0] == '[' else '>'} {low}" if low != "-inf" else ""
    below = f"{'<=' if interval[-1] == ']' else '<'} {high}" if high != "inf" else ""
    return " and ".join(part for part in (above, below) if part)


def _inside(value: Any, interval: str) -> bool:
    """Whether a number lies in an interval "[0, 1)"; anything else does."""
    if not interval or isinstance(value, bool) or not isinstance(value, int | float):
        return True
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def _refuse(raw: Raw, rule: str, name: str, choices: Sequence[str] = ()) -> NoReturn:
    first = raw[0] if isinstance(raw, list) and raw else raw
    where = first.where if isinstance(first, Text) else ""
    texts = [item.text for item in (raw if isinstance(raw, list) else [raw])]
    got = "nothing" if texts in ([None], []) else ", ".join(f'"{text}"' for text in texts)
    hint = suggestion(str(texts[0]), choices) if texts else ""
    raise InputError(f"`{name}` must be {rule}; got {got} {where}.{hint}")
