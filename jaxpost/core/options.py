"""Options: the fields of (nested) configuration dataclasses, flattened to dotted names with type, default and help."""

import dataclasses
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from jaxpost.core.errors import suggestion


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    unit: str = "",
    range: str = "",
    positional: bool = False,
    verbatim: bool = False,
) -> Any:
    """A dataclass field with what `--help` and the checks need to know.

    Args:
      default: the default; left out, the option is required. A frozen section (nested dataclass) may stand here.
      help: one sentence for `--help`.
      unit: "tokens", "rows", ...; shown in `--help`.
      range: interval that numbers must lie in, as in mathematics: "[0, 1)", "[1, inf)".
      positional: the command's one subject, given without a flag (`jaxpost import FILE`).
      verbatim: of a list of texts: each is taken as it is, commas and all; several are written by repeating the flag.
    """
    metadata = {"help": help, "unit": unit, "range": range, "positional": positional, "verbatim": verbatim}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One leaf of a configuration."""

    name: str  # dotted, as the fields are spelled: "lora.rank"
    annotation: Any = str
    default: Any = dataclasses.field(default_factory=lambda: MISSING)  # MISSING: the option is required
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def flag(self) -> str:
        """The spelling on the command line: `--lora.rank`, `--batch-size`."""
        return "--" + self.name.replace("_", "-")

    @property
    def positional(self) -> bool:
        return bool(self.metadata.get("positional"))

    @property
    def verbatim(self) -> bool:
        return bool(self.metadata.get("verbatim"))

    @property
    def is_switch(self) -> bool:
        """Whether the flag needs no value: `--full`, `--no-full`."""
        return self.annotation is bool

    @property
    def is_list(self) -> bool:
        """Whether the flag may be repeated."""
        return any(typing.get_origin(member) is tuple for member in union_members(self.annotation))


def options(cls: type, prefix: str = "", defaults: Any = None) -> Iterator[Option]:
    """Every option of a dataclass and of its sections, in the order of the fields.

    `defaults`: an instance whose values are the defaults (a section's, as its parent gives it).
    """
    for name, annotation, field in typed_fields(cls):
        default = getattr(defaults, name) if defaults is not None else default_of(field)
        if is_section(annotation):
            yield from options(annotation, f"{prefix}{name}.", None if default is MISSING else default)
        else:
            yield Option(name=prefix + name, annotation=annotation, default=default, metadata=field.metadata)


def section_names(names: Iterable[str]) -> set[str]:
    """The sections that hold these options.

    >>> sorted(section_names(["seed", "lora.rank", "data.mix.seed"]))
    ['data', 'data.mix', 'lora']
    """
    sections: set[str] = set()
    for name in names:
        while name := name.rpartition(".")[0]:
            sections.add(name)
    return sections


def typed_fields(cls: Any) -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Name, evaluated annotation and field of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield field.name, hints[field.name], field


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the option that was meant: the same name in another section, else the closest spelling.

    >>> nearest("--rank", ["--seed", "--lora.rank"])
    ' Did you mean "--lora.rank"?'
    """
    last = name.rpartition(".")[2].lstrip("-")
    for candidate in (known := list(known)):
        if candidate.rpartition(".")[2].lstrip("-") == last:
            return f' Did you mean "{candidate}"?'
    return suggestion(name, known)


def is_section(annotation: Any) -> bool:
    """Whether a field of this type is a section: a dataclass again."""
    return dataclasses.is_dataclass(annotation)


def default_of(field: dataclasses.Field) -> Any:
    """The field's default, its factory's product, or MISSING."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def union_members(annotation: Any) -> tuple[Any, ...]:
    """The types of `int | None`; of any other annotation itself alone.

    >>> union_members(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)
