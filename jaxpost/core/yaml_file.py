"""A YAML file as flat texts: dotted option names, each with its text as written and the line it stands on."""

from pathlib import Path

import yaml

from jaxpost.core.errors import InputError
from jaxpost.core.values import Raw, Text

PLAIN_TAGS = {"tag:yaml.org,2002:" + name for name in ("str", "int", "float", "bool", "null", "timestamp", "value")}


def read_yaml(path: Path) -> dict[str, Raw]:
    """The options of a YAML file: sections nested or dotted, keys with dashes or underscores.

    Returns:
      name -> text or list of texts, e.g. {"lora.rank": Text("8", "at run.yaml line 3")}.

    Raises:
      InputError: unreadable file, YAML syntax, a key that stands twice, a value that is no scalar or list of scalars.
    """
    try:
        root = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"`--config` must be a readable YAML file; got {path}: {reason}.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML{_mark(error)}.") from error
    found: dict[str, Raw] = {}
    if root is not None:
        if not isinstance(root, yaml.MappingNode):
            raise InputError(f"{path} must hold `key: value` lines; got {_kind(root)} {_where(path, root)}.")
        _read_mapping(path, root, "", found)
    return found


def _read_mapping(path: Path, mapping: yaml.MappingNode, prefix: str, found: dict[str, Raw]) -> None:
    for key, value in mapping.value:
        if not isinstance(key, yaml.ScalarNode):
            raise InputError(f"a key must be a name; got {_kind(key)} {_where(path, key)}.")
        name = prefix + key.value.replace("-", "_")
        if isinstance(value, yaml.MappingNode):
            _read_mapping(path, value, name + ".", found)
            continue
        if name in found:
            raise InputError(f"`{name}` is given twice {_where(path, key)}. Remove one of the two.")
        found[name] = _read_value(path, value, name)


def _read_value(path: Path, node: yaml.Node, name: str) -> Raw:
    if isinstance(node, yaml.SequenceNode):
        return [_read_scalar(path, item, name) for item in node.value]
    return _read_scalar(path, node, name)


def _read_scalar(path: Path, node: yaml.Node, name: str) -> Text:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in PLAIN_TAGS:
        raise InputError(f"`{name}` must be a plain value or a list of them; got {_kind(node)} {_where(path, node)}.")
    is_null = node.tag.endswith(":null")
    return Text(None if is_null else node.value, _where(path, node), quoted=node.style is not None)


def _kind(node: yaml.Node) -> str:
    kinds = {yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: f"`{node.tag}`"}
    return kinds[type(node)]


def _where(path: Path, node: yaml.Node) -> str:
    return f"at {path} line {node.start_mark.line + 1}"


def _mark(error: yaml.YAMLError) -> str:
    """Line and reason of a syntax error, on one line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f": {' '.join(str(error).split())}"
    return f" at line {error.problem_mark.line + 1}: {error.problem}"
