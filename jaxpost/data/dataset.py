"""`--data` -> examples on disk: each item tokenised once and kept, then put together, or mixed by weight."""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxpost.data.cache import Kept, kept, key_of
from jaxpost.data.chat.template import asks_for_the_day, folder_of
from jaxpost.data.encode import EncodeOptions, close, encode_stream, joint_fingerprint
from jaxpost.data.examples import Encoded, Example, Joined, Tally, totals_of
from jaxpost.data.mixing import drawn, weights_of
from jaxpost.data.sources import Source, open_sources


def prepare_data(
    tokenizer: Any, data: str | Path | Sequence[str | Path], options: EncodeOptions, *, seed: int = 0
) -> Encoded:
    """The examples of all items of `--data`, in their order; nothing of them is held in memory but a few numbers.

    With weights an epoch holds a part of each item, drawn once by `seed`, in numbers that `mixing.mixture_sizes` says:
    fractions of *rows* as asked for within one row, no row twice, the end where an item is used up. Every epoch goes
    through these rows in an order of its own. Counts are then of what an epoch holds, and of all rows read.

    Args:
      tokenizer: a fast tokenizer of transformers.
      data: files and data sets, as `jaxpost.data.names` spells them.
      options: how rows are encoded.
      seed: of the part that a mixture takes.

    Raises:
      InputError: an item that cannot be read or trained as it is; no row left; a mixture that cannot be had.
      RunError: the tokenised data cannot be written.
    """
    sources = open_sources(data)
    options = dataclasses.replace(options, date=options.date or datetime.date.today())
    parts = [_kept(tokenizer, source, options) for source in sources]
    tally = Tally()
    for part in parts:
        tally.merge(part.tally)
    examples = [part.examples for part in parts]
    rows = [part.tally.counts["rows"] for part in parts]
    names = [source.name for source in sources]
    chosen = drawn(names, rows, [len(part) for part in examples], seed)
    joined = Joined(examples, rows, chosen)
    if chosen is not None:
        _count_chosen(tally, joined)
    counts = close(tally, folder_of(tokenizer))
    fingerprint = joint_fingerprint([(part.fingerprint, part.tally) for part in parts], weights_of(names))
    return Encoded(examples=joined, counts=counts, fingerprint=fingerprint)


def _kept(tokenizer: Any, source: Source, options: EncodeOptions) -> Kept:
    asked = {**dataclasses.asdict(options), "stop_ids": sorted(options.stop_ids)}
    asked["date"] = str(options.date) if asks_for_the_day(tokenizer) else None
    key = key_of(tokenizer, data=source.digest(), name=source.name.text, options=asked)

    def examples(tally: Tally) -> Iterator[Example]:
        return encode_stream(tokenizer, source.rows(keep_bad=options.skip_bad_rows), options, tally)

    return kept(key, examples)


def _count_chosen(tally: Tally, chosen: Sequence[Example]) -> None:
    """The tally of what an epoch holds, of a tally of all that is left."""
    tally.counts["unused"] = tally.counts["examples"] - len(chosen)
    for name, count in totals_of(chosen).items():
        tally.counts[name] = count
