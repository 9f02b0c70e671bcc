"""Texts found in a file or on the command line, matched with the options and converted to their types."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxpost.core.errors import InputError
from jaxpost.core.options import Option, nearest, section_names
from jaxpost.core.values import Raw, Text, convert


def typed_values(found: Mapping[str, Raw], known: Mapping[str, Option], spell: Callable[[str], str]) -> dict[str, Any]:
    """Name -> value for each text found.

    Args:
      found: dotted name -> text(s).   known: the options by name.   spell: a name as its user writes it, for messages.

    Raises:
      InputError: a name that is no option (with a suggestion), a value of the wrong type or out of range.
    """
    sections, values = section_names(known), {}
    for name, raw in found.items():
        if name in sections:
            values |= typed_values(_section(name, raw, spell(name)), known, spell)
        elif name in known:
            option = known[name]
            if option.verbatim and isinstance(raw, Text) and raw.text is not None:
                raw = [raw]  # a text alone would be split at its commas
            values[name] = convert(raw, option.annotation, spell(name), option.metadata.get("range", ""))
        else:
            hint = nearest(spell(name), map(spell, known))
            raise InputError(f"unknown key `{spell(name)}` {_where(raw)}.{hint}")
    return values


def _section(name: str, raw: Raw, spelled: str) -> dict[str, Raw]:
    """A section given as one text, `--mesh data=2,fsdp=4`; an empty one in YAML says nothing."""
    if isinstance(raw, Text) and raw.text is None:
        return {}
    pairs = [part.partition("=") for part in raw.text.split(",")] if isinstance(raw, Text) and raw.text else []
    if not pairs or not all(equals for _, equals, _ in pairs):
        got = f'"{raw.text}"' if isinstance(raw, Text) else "a list"
        raise InputError(f"`{spelled}` must be name=value pairs joined by commas; got {got} {_where(raw)}.")
    where = _where(raw)
    return {f"{name}.{key.strip().replace('-', '_')}": Text(value.strip(), where) for key, _, value in pairs}


def _where(raw: Raw) -> str:
    items = [raw] if isinstance(raw, Text) else raw
    return items[0].where if items else "with an empty list"
