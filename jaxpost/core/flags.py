"""The command line as flat texts: `--lora.rank 8`, `--full`, `--no-full`, `--data a --data b`, one positional."""

from collections.abc import Sequence

from jaxpost.core.errors import InputError
from jaxpost.core.options import Option, nearest
from jaxpost.core.scalars import FALSE, TRUE
from jaxpost.core.values import Raw, Text, split

WHERE = "on the command line"


def read_flags(argv: Sequence[str], known: Sequence[Option], command: str) -> dict[str, Raw]:
    """The options given in `argv`; of a repeated flag the last counts, of a list's flag all.

    Raises:
      InputError: unknown flag (with a suggestion), missing value, unexpected argument.
    """
    by_flag = {option.flag: option for option in known}
    given: dict[str, list[str]] = {}
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        flag, equals, value = argument.partition("=")
        option, negated = _option_of(flag, by_flag, command)
        if option is None:
            option, value = _positional(argument, known, given), argument
        elif negated:
            if equals:
                raise InputError(f"`{flag}` takes no value; got `{argument}`. Write `{option.flag}={value}`.")
            value = "false"
        elif not equals:
            value = _next_value(option, waiting)
        given.setdefault(option.name, []).append(value)
    return {option.name: _raw(option, given[option.name]) for option in known if option.name in given}


def _option_of(flag: str, by_flag: dict[str, Option], command: str) -> tuple[Option | None, bool]:
    """The flag's option and whether it is spelled `--no-...`; (None, False) for what is no flag."""
    if not flag.startswith("-") or flag == "-":
        return None, False
    spelled = "--" + flag[2:].replace("_", "-")
    switch = by_flag.get("--" + spelled.removeprefix("--no-"))
    if spelled in by_flag:
        return by_flag[spelled], False
    if spelled.startswith("--no-") and switch is not None and switch.is_switch:
        return switch, True
    hint = nearest(spelled, [*by_flag, "--help"]) or f" See `jaxpost {command} --help`."
    raise InputError(f"unknown flag `{flag}`.{hint}")


def _positional(argument: str, known: Sequence[Option], given: dict[str, list[str]]) -> Option:
    for option in known:
        if option.positional and option.name not in given:
            return option
    raise InputError(f"unexpected argument `{argument}`. Options are written `--name value`.")


def _next_value(option: Option, waiting: list[str]) -> str:
    """The value that follows a flag; a switch needs none."""
    if option.is_switch:
        return waiting.pop(0) if waiting and waiting[0].lower() in TRUE + FALSE else "true"
    if not waiting or waiting[0].startswith("--"):
        raise InputError(f"`{option.flag}` needs a value, `{option.flag} VALUE` or `{option.flag}=VALUE`.")
    return waiting.pop(0)


def _raw(option: Option, texts: list[str]) -> Raw:
    if option.verbatim:
        return [Text(text, WHERE) for text in texts]
    if option.is_list and len(texts) > 1:
        return [Text(item, WHERE) for text in texts for item in split(text)]
    return Text(texts[-1], WHERE)
