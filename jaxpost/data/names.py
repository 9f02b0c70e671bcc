"""What `--data` names: a file, or a data set of the Hugging Face hub, and its weight in a mixture.

    rows.jsonl                                      a file; its ending says which kind
    ORG/NAME[/CONFIG][@REVISION][:SPLIT]            a data set; the split is `train` unless given, or `train[:1000]` ...
    rows.jsonl=0.7   ORG/NAME:train=0.3             either with its weight

A file's ending comes last in its name, so that none of these marks can be part of it; what exists here is a file.
"""

import dataclasses
import math
import os.path
import re
from collections.abc import Sequence
from pathlib import Path

from jaxpost.core.errors import InputError

PARQUET = ".parquet"
SUFFIXES = (".jsonl", ".json", PARQUET)
# A revision may hold slashes (refs/pr/3) and no colon, as git has it; a split may hold both (train[10%:20%]+test).
_HUB = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/\w[\w.-]*)(/(?P<config>[^/@:]+))?(@(?P<revision>[^:@]+))?(:(?P<split>.+))?"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataName:
    """One item of `--data`.

    Attributes:
      text: as it was written, without the weight.
      path: the file; None for a data set of the hub, which the next four describe.
      weight: its share of a mixture, relative to the others' weights; None: all of its rows are taken.
    """

    text: str
    path: Path | None = None
    repository: str = ""
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    weight: float | None = None


def parse_names(texts: Sequence[str | Path]) -> list[DataName]:
    """The items, each parsed.

    Raises:
      InputError: an item that names neither a file nor a data set, a weight that is no positive number, or weights for
        some items only.
    """
    names = [parse_name(str(text)) for text in texts]
    bare = [name.text for name in names if name.weight is None]
    if bare and len(bare) < len(names):
        raise InputError(
            f"`data` must have a weight for every item or for none; got none for {bare[0]}. Write `{bare[0]}=WEIGHT`."
        )
    return names


def parse_name(text: str) -> DataName:
    """One item.

    >>> parse_name("rows.jsonl=0.7").weight
    0.7
    >>> name = parse_name("org/name/config@refs/pr/3:train[:10%]")
    >>> name.repository, name.config, name.revision, name.split
    ('org/name', 'config', 'refs/pr/3', 'train[:10%]')
    """
    if _is_file(text):
        return DataName(text=text, path=Path(text))
    base, equals, weight = text.rpartition("=")
    base = base if equals else text
    share = _weight(weight, text) if equals else None
    if _is_file(base):
        return DataName(text=base, path=Path(base), weight=share)
    if found := _HUB.fullmatch(base):
        repository, config, revision, split = found.group("repository", "config", "revision", "split")
        hub = DataName(text=base, weight=share, repository=repository, config=config, revision=revision)
        return dataclasses.replace(hub, split=split) if split else hub
    raise InputError(
        f"`data` must be a file that exists ({', '.join(SUFFIXES)}) or a data set of the hub, "
        f"ORG/NAME[/CONFIG][@REVISION][:SPLIT]; got {text}. Check the path or the name."
    )


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() in SUFFIXES or os.path.exists(text)


def _weight(text: str, item: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not (0 < weight < math.inf):
        raise InputError(
            f"the weight of an item of `data` must be a number above 0; got {text!r} in {item}. "
            "Write ITEM=WEIGHT, rows.jsonl=0.3 say."
        )
    return weight
