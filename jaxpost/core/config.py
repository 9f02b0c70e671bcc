"""Configurations: one frozen dataclass is the YAML file, the flags, their help and their defaults.

@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    rank: int = option(16, "rows of A and columns of B", range="[1, inf)")

@dataclass(frozen=True, kw_only=True)
class SftConfig:
    model: str = option(help="folder or hub id of the model to start from")
    full: bool = option(False, "train all weights instead of an adapter")
    lora: LoraConfig = LoraConfig()

config = load_config(SftConfig, ["--config", "run.yaml", "--lora.rank", "8"], command="sft")
"""

import dataclasses
import datetime
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any, TypeVar

import yaml

from jaxpost.core.assign import typed_values
from jaxpost.core.errors import InputError
from jaxpost.core.flags import read_flags
from jaxpost.core.help import help_text
from jaxpost.core.options import Option, default_of, is_section, option, options, section_names, typed_fields
from jaxpost.core.values import NONE, convert
from jaxpost.core.yaml_file import read_yaml

__all__ = ["dump_config", "load_config", "option", "plain_config"]

Config = TypeVar("Config")

CONFIG = Option(
    name="config", annotation=Path, default=None, metadata={"help": "YAML file of these options; flags override it"}
)


def load_config(
    cls: type[Config],
    argv: Sequence[str] = (),
    yaml_path: str | Path | None = None,
    *,
    command: str = "",
    about: str = "",
) -> Config:
    """The configuration `cls` from its defaults, then the YAML file, then the flags: the last word wins.

    Args:
      cls: a frozen dataclass; its fields may be sections (dataclasses again).
      argv: flags, without the command; `--config FILE` among them goes before `yaml_path`; `--help` prints and exits 0.
      command, about: the command's name and a sentence, for `--help` and messages.

    Raises:
      InputError: unknown, repeated, missing or ill-typed option; the message names it and the file's line or the flag.
    """
    known = {item.name: item for item in options(cls)}
    if "--help" in argv or "-h" in argv:
        columns = min(100, shutil.get_terminal_size((100, 24)).columns)
        print(help_text([CONFIG, *known.values()], command, about, columns))
        raise SystemExit(0)
    sections = [Option(name=name, annotation=str) for name in sorted(section_names(known))]
    flags = read_flags(argv, [CONFIG, *sections, *known.values()], command)
    if (config := flags.pop("config", None)) is not None:
        yaml_path = convert(config, Path, "--config")
    values: dict[str, Any] = {}
    if yaml_path is not None:
        values |= typed_values(read_yaml(Path(yaml_path)), known, lambda name: name)
    values |= typed_values(flags, known, lambda name: Option(name=name).flag)
    return _build(cls, values)


def dump_config(config: Any) -> str:
    """The YAML text, every option written out, that `load_config` reads back to an equal configuration."""
    return yaml.dump(plain_config(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def plain_config(value: Any) -> Any:
    """A configuration, or a value in one, in what YAML and JSON have a spelling for: mappings, lists, scalars."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [plain_config(item) for item in value]
    return str(value) if isinstance(value, Path | datetime.date) else value


def _build(cls: type[Config], values: Mapping[str, Any], prefix: str = "", defaults: Any = None) -> Config:
    arguments = {}
    for name, annotation, field in typed_fields(cls):
        default = getattr(defaults, name) if defaults is not None else default_of(field)
        if is_section(annotation):
            arguments[name] = _build(annotation, values, f"{prefix}{name}.", None if default is MISSING else default)
        elif prefix + name in values:
            arguments[name] = values[prefix + name]
        elif default is not MISSING:
            arguments[name] = default
        else:
            raise InputError(_missing(Option(name=prefix + name, annotation=annotation, metadata=field.metadata)))
    return cls(**arguments)


def _missing(option: Option) -> str:
    written = option.name.upper() if option.positional else f"{option.flag} ..."
    meaning = f": {option.metadata['help']}" if option.metadata.get("help") else ""
    return f"`{option.flag}` is required{meaning}. Write `{written}` or `{option.name}:` in the YAML file."


class _Dumper(yaml.SafeDumper):
    """Quotes texts that would be read as none, and those with line breaks (PyYAML itself loses U+0085)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal sections are written out, not as anchors


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    quotes = '"' if text.lower() in NONE or not text.isprintable() else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quotes)


_Dumper.add_representer(str, _text)
