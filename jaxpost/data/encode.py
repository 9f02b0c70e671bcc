"""Rows -> examples: tokenised, with the trained tokens marked, cut or dropped to `max_length`, everything counted."""

import dataclasses
import datetime
import hashlib
import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from jaxpost.core.errors import InputError
from jaxpost.data.chat.masks import encode_chats
from jaxpost.data.chat.template import folder_of
from jaxpost.data.chat.turns import Chat
from jaxpost.data.examples import Counts, Encoded, Example, Tally, Tokenised, fingerprint_of
from jaxpost.data.plain import Plain, encode_completions, encode_texts
from jaxpost.data.rows import BadRow, ChatRow, CompletionRow, Row, TextRow

OVERLONG = ("truncate", "drop", "error")
CHUNK_ROWS = 1024  # tokenised at a time: enough for the tokenizer's threads, little to hold in memory
R = TypeVar("R", bound=Row | BadRow)
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How rows are encoded.

    Attributes:
      max_length: in tokens, 2 or more.
      overlong: what becomes of a longer row: "truncate" keeps its start, "drop" leaves it out, "error" raises.
      vocab_size: rows of the model's embedding; every id must be below it.
      stop_ids: ids that end generation beside the tokenizer's EOS (generation_config.json).
      last_only: of a conversation train the last assistant turn only.
      skip_bad_rows: leave out and count a row that cannot be read, or that the template cannot train, instead of
        raising. A row over `max_length` and an id over the vocabulary raise as before: they tell of the options and of
        the checkpoint.
      date: the day that templates are told which ask for it; None is today.
    """

    max_length: int
    overlong: str
    vocab_size: int
    stop_ids: Collection[int] = ()
    last_only: bool = False
    skip_bad_rows: bool = False
    date: datetime.date | None = None

    def __post_init__(self):
        if self.max_length < 2:
            raise InputError(f"`max_length` must be 2 tokens or more; got {self.max_length}. Raise it.")
        if self.overlong not in OVERLONG:
            raise InputError(f"`overlong` must be one of {', '.join(OVERLONG)}; got {self.overlong!r}. Choose one.")


def encode_rows(tokenizer: Any, rows: Iterable[Row | BadRow], **options: Any) -> Encoded:
    """Encode rows for supervised fine-tuning, all into memory (`dataset.prepare_data` keeps them on disk).

    A `text` row gets the tokenizer's own special tokens and one EOS, and is trained whole. `prompt` and `completion`
    strings are joined without a template; the completion and one EOS are trained. Messages go through the chat
    template; the assistant's turns are trained, each with its stop token. A document's first token is never trained.

    Args:
      tokenizer: a fast tokenizer of transformers.
      rows: from `read_rows`.
      options: of `EncodeOptions`.

    Raises:
      InputError: a row that cannot be trained as it is, by file and line; no row left, with the reasons.
    """
    tally = Tally()
    examples = list(encode_stream(tokenizer, rows, EncodeOptions(**options), tally))
    counts = close(tally, folder_of(tokenizer))
    return Encoded(examples=examples, counts=counts, fingerprint=joint_fingerprint([(fingerprint_of(examples), tally)]))


def encode_stream(
    tokenizer: Any, rows: Iterable[Row | BadRow], options: EncodeOptions, tally: Tally
) -> Iterator[Example]:
    """The examples one after another, some rows read at a time; the tally is whole when they have all come."""
    plain, chat = Plain(tokenizer=tokenizer), Chat(tokenizer=tokenizer, stop_ids=frozenset(options.stop_ids))
    for row, tokens in _tokenise(plain, chat, rows, options):
        tally.counts["rows"] += 1
        if isinstance(row, BadRow):
            if not options.skip_bad_rows:
                raise InputError(row.reason)
            tally.add_bad(row.reason)
            continue
        example, note = fit(row, tokens, options.max_length, options.overlong)
        tally.counts.update(filter(None, [note]))
        if example is None or tokens is None:
            continue
        _check_vocabulary(tokenizer, row, example, options.vocab_size)
        sizes = {"examples": 1, "tokens": len(example.ids), "trained_tokens": int(example.trained.sum())}
        tally.counts.update(sizes)
        for event in _events(tokens):
            tally.counts[event] += 1
            tally.first.setdefault(event, row.where)
        yield example


def at_day(rows: Iterable[R], date: datetime.date | None) -> Iterator[R]:
    """Rows whose templates are told that day, where they ask for it."""
    return (dataclasses.replace(row, date=date) if isinstance(row, ChatRow) else row for row in rows)


def close(tally: Tally, folder: str) -> Counts:
    """The counts of a whole tally, once they have been warned about; `folder` is the tokenizer's.

    Raises:
      InputError: no row is left to train on.
    """
    counts = Counts(**tally.counts)
    if not counts.examples:
        reasons = f": {counts.dropped()}" if counts.rows else ""
        first = f" The first broken one: {tally.bad[0]}" if tally.bad else ""
        raise InputError(f"`data` must hold a row to train on; got {counts.rows} rows{reasons}. Check the data.{first}")
    for reason in tally.bad:
        log.warning("skipped: %s", reason)
    if counts.dropped_bad > len(tally.bad):
        log.warning("and %d more broken rows", counts.dropped_bad - len(tally.bad))
    _warn(counts, tally.first, folder)
    return counts


def joint_fingerprint(parts: Sequence[tuple[str, Tally]], weights: Sequence[float] | None = None) -> str:
    """The fingerprint (hex) of sources put together: their examples', their numbers of rows, their weights."""
    told = [[fingerprint, tally.counts["rows"]] for fingerprint, tally in parts]
    return hashlib.sha256(json.dumps([told, weights]).encode()).hexdigest()


def _tokenise(
    plain: Plain, chat: Chat, rows: Iterable[Row | BadRow], options: EncodeOptions
) -> Iterator[tuple[Row | BadRow, Tokenised | None]]:
    rows = at_day(rows, options.date)
    while chunk := list(itertools.islice(rows, CHUNK_ROWS)):
        if options.last_only:
            chunk = [_last_turn(row) if isinstance(row, ChatRow) else row for row in chunk]
        try:
            yield from tokenise_chunk(plain, chat, chunk)
        except InputError:
            if not options.skip_bad_rows:
                raise
            # One of them: each alone says which.
            yield from itertools.chain.from_iterable(_tokenise_alone(plain, chat, row) for row in chunk)


def tokenise_chunk(plain: Plain, chat: Chat, chunk: Sequence[R]) -> Sequence[tuple[R, Tokenised | None]]:
    """Each row with its tokens; None for a broken one, and for a conversation without a trained turn."""
    encoded = {
        TextRow: iter(encode_texts(plain, [row for row in chunk if isinstance(row, TextRow)])),
        CompletionRow: iter(encode_completions(plain, [row for row in chunk if isinstance(row, CompletionRow)])),
        ChatRow: iter(encode_chats(chat, [row for row in chunk if isinstance(row, ChatRow)])),
        BadRow: itertools.repeat(None),
    }
    return [(row, next(encoded[type(row)])) for row in chunk]


def _tokenise_alone(plain: Plain, chat: Chat, row: Row | BadRow) -> Sequence[tuple[Row | BadRow, Tokenised | None]]:
    try:
        return tokenise_chunk(plain, chat, [row])
    except InputError as error:
        return [(BadRow(source=row.source, where=row.where, reason=str(error)), None)]


def _last_turn(row: ChatRow) -> ChatRow:
    turns = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    return dataclasses.replace(row, trained_from=max([row.trained_from, *turns]))


def fit(row: Row, tokens: Tokenised | None, max_length: int, overlong: str) -> tuple[Example | None, str | None]:
    """The example that a row becomes, if any, and the counter that tells what happened to it, if anything did."""
    if tokens is None:
        return None, "dropped_no_assistant"
    if not tokens.trained.any():
        return None, "dropped_empty"
    ids, trained = tokens.ids[:max_length], tokens.trained[:max_length]
    note = None
    if len(tokens.ids) > max_length:
        if overlong == "error":
            raise InputError(
                f"a row must have at most `max_length` {max_length} tokens; got {len(tokens.ids)} at {row.where}. "
                "Shorten it, raise max_length, or set overlong to truncate or drop."
            )
        if overlong == "drop":
            return None, "dropped_overlong"
        if not trained.any():
            return None, "dropped_truncated"
        note = "truncated"
    return Example(ids=ids, trained=trained, source=row.source), note


def _check_vocabulary(tokenizer: Any, row: Row, example: Example, vocab_size: int) -> None:
    # A gather in XLA clamps such an id without a word.
    if (top := int(example.ids.max())) >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(top)
        raise InputError(
            f"token ids must be below the embedding's {vocab_size} rows; got {top} ({token!r}) at {row.where}. "
            f"The tokenizer at {folder_of(tokenizer)} has more tokens than the checkpoint: use the one it came with."
        )


def _events(tokens: Tokenised) -> Sequence[str]:
    events = {
        "merged_boundaries": tokens.merged,
        "unstopped": not tokens.stopped,
        "spelled_controls": tokens.spelled,
        "unshown_messages": tokens.unshown,
    }
    return [name for name, happened in events.items() if happened]


def _warn(counts: Counts, first: dict[str, str], folder: str) -> None:
    if counts.merged_boundaries:
        log.warning(
            "in %d rows one token holds the end of the prompt and the start of the completion (first at %s): it is "
            "trained, but at inference the model sees other tokens there. End prompts where a token ends.",
            *(counts.merged_boundaries, first["merged_boundaries"]),
        )
    if counts.unstopped:
        log.warning(
            "in %d rows no stop token ends the last answer (first at %s), so the model is not taught to stop. "
            "See the chat template and `eos_token` in %s.",
            *(counts.unstopped, first["unstopped"], folder),
        )
    if counts.spelled_controls:
        log.warning(
            "in %d rows a message spells a control token (first at %s): it is encoded as text. Calls of tools and "
            "reasoning have columns of their own (`tool_calls`, `reasoning_content`).",
            *(counts.spelled_controls, first["spelled_controls"]),
        )
    if counts.unshown_messages:
        log.warning(
            "in %d rows the chat template of %s leaves a message out (first at %s), of a role perhaps that it does not "
            "know: the model is trained without it. See the template.",
            *(counts.unshown_messages, folder, first["unshown_messages"]),
        )
