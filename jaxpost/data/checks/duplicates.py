"""Rows that are there twice: letter by letter, nearly, with another answer, in training and evaluation."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from jaxpost.data.checks.findings import SHOWN_PLACES, Finding, finding
from jaxpost.data.checks.shingles import PERMUTATIONS, likeness, signatures
from jaxpost.data.rows import ChatRow, CompletionRow, Row, TextRow

NEAR = 0.8  # estimated Jaccard similarity of the prompts, and of the answers, from which on rows are nearly equal
BANDS = 16  # of 4 places each: rows that are 0.8 alike agree in one of them with probability 1 - (1 - 0.8^4)^16 > 0.999
NEIGHBOURS = 4  # earlier rows of a bucket that a row is compared with, beside the bucket's first
Numbers = Int64[np.ndarray, " _"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Digests:
    """What is kept of each row, about 700 bytes: a million rows fit into memory.

    Attributes:
      where: file and line.
      whole, prompt: hashes of all that the row holds, and of what stands before its last answer.
      prompts, answers: MinHash signatures of their words.
    """

    where: list[str]
    whole: UInt64[np.ndarray, " n"]
    prompt: UInt64[np.ndarray, " n"]
    prompts: UInt32[np.ndarray, " n permutations"]
    answers: UInt32[np.ndarray, " n permutations"]


class Digester:
    """Collects rows, some at a time, into `Digests`."""

    def __init__(self) -> None:
        self._where: list[str] = []
        self._hashes: list[tuple[int, int]] = []
        self._signed: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, rows: list[Row]) -> None:
        self._where += [row.where for row in rows]
        keys = [_keys(row) for row in rows]
        self._hashes += [(_hash(prompt + "\0" + answer), _hash(prompt)) for prompt, answer in keys]
        texts = [texts_of(row) for row in rows]
        self._signed.append((signatures([p for p, _ in texts]), signatures([a for _, a in texts])))

    def digests(self) -> Digests:
        hashes = np.array(self._hashes, np.uint64).reshape(-1, 2)
        empty = np.zeros((0, PERMUTATIONS), np.uint32)
        return Digests(
            where=self._where,
            whole=hashes[:, 0],
            prompt=hashes[:, 1],
            prompts=np.concatenate([empty, *(p for p, _ in self._signed)]),
            answers=np.concatenate([empty, *(a for _, a in self._signed)]),
        )


def texts_of(row: Row) -> tuple[str, str]:
    """The words of a row's prompt and of its last answer, for a comparison: no roles, no system message.

    >>> texts_of(CompletionRow(source=1, where="", prompt="2+2=", completion="4"))
    ('2+2=', '4')
    """
    if isinstance(row, TextRow):
        return "", row.text
    if isinstance(row, CompletionRow):
        return row.prompt, row.completion
    cut = _last_answer(row)
    said = [_content(message) for message in row.messages[:cut] if message["role"] not in ("system", "developer")]
    return "\n".join(said), "\n".join(_content(message) for message in row.messages[cut:])


def _last_answer(row: ChatRow) -> int:
    turns = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    return turns[-1] if turns else len(row.messages)


def _content(message: dict) -> str:
    """Everything that a message says, tool calls and reasoning too."""
    rest = [value for key, value in message.items() if key not in ("role", "content") and value]
    content = message.get("content") or ""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return " ".join([text, *(json.dumps(value, ensure_ascii=False, default=str) for value in rest)]).strip()


def _keys(row: Row) -> tuple[str, str]:
    """Texts that are equal exactly where prompt and answer are."""
    if isinstance(row, TextRow):
        return "text", row.text
    if isinstance(row, CompletionRow):
        return "prompt" + row.prompt, row.completion
    write = lambda value: json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)  # noqa: E731
    cut = _last_answer(row)
    return write([row.messages[:cut], row.tools, dict(row.template_kwargs)]), write(row.messages[cut:])


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def duplicate_findings(rows: Digests, with_prompt: np.ndarray) -> list[Finding]:
    """Copies, near copies and conflicting answers within a set; `with_prompt` says which rows have a prompt."""
    every = np.arange(len(rows.where))
    first, asked = _match(rows.whole, rows.whole), _match(rows.prompt, rows.prompt)
    copies, unique = np.flatnonzero(first < every), np.flatnonzero(first == every)
    conflicts = np.flatnonzero((first == every) & (asked < every) & with_prompt)
    near, partner = _near(rows, unique, rows, unique)
    return [
        *_paired("rows.duplicate", rows, copies, rows, first[copies]),
        *_paired("rows.near-duplicate", rows, near, rows, partner),
        *_paired("rows.conflict", rows, conflicts, rows, asked[conflicts]),
    ]


def overlap_findings(train: Digests, held: Digests, with_prompt: np.ndarray) -> list[Finding]:
    """Rows of the evaluation that are in the training data: letter by letter, nearly, or by their prompt."""
    same, asked = _match(held.whole, train.whole), _match(held.prompt, train.prompt)
    leaked, rest = np.flatnonzero(same >= 0), np.flatnonzero(same < 0)
    prompts = np.flatnonzero((asked >= 0) & (same < 0) & with_prompt)
    near, partner = _near(held, rest, train, np.arange(len(train.where)))
    return [
        *_paired("eval.leak", held, leaked, train, same[leaked]),
        *_paired("eval.near", held, near, train, partner),
        *_paired("eval.prompt", held, prompts, train, asked[prompts]),
    ]


def _paired(check: str, rows: Digests, hits: Numbers, others: Digests, partners: Numbers) -> Iterator[Finding]:
    """One finding with the first rows and what each is like, or nothing."""
    if len(hits):
        shown = zip(hits[:SHOWN_PLACES].tolist(), partners[:SHOWN_PLACES].tolist(), strict=True)
        places = [f"{rows.where[hit]} = {others.where[partner]}" for hit, partner in shown]
        yield finding(check, count=len(hits), total=len(rows.where), places=places)


def _match(hashes: UInt64[np.ndarray, " n"], among: UInt64[np.ndarray, " m"]) -> Numbers:
    """For each hash the first place where it is `among` others, -1 where it is not."""
    known, first = np.unique(among, return_index=True)
    if not len(known):
        return np.full(len(hashes), -1)
    place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.where(known[place] == hashes, first[place], -1)


def _near(rows: Digests, chosen: Numbers, others: Digests, among: Numbers) -> tuple[Numbers, Numbers]:
    """The `chosen` rows that are nearly equal to one `among` others, and to which.

    Rows are compared only where they fall into one bucket of a band of their signature: with the bucket's first few
    members, or, within one set, with its first and the few before the row. Work grows with the rows, not their pairs.
    """
    partner = np.full(len(chosen), -1)
    ours = np.minimum(rows.prompts[chosen], rows.answers[chosen])
    theirs = ours if rows is others else np.minimum(others.prompts[among], others.answers[among])
    for band in range(BANDS):
        bucket, their_bucket = _bucket(ours, band), _bucket(theirs, band)
        order = np.argsort(their_bucket, kind="stable")
        begin = np.searchsorted(their_bucket[order], bucket, side="left")
        if rows is others:
            place = np.empty(len(order), np.int64)
            place[order] = np.arange(len(order))
            tried = [begin, *(place - back for back in range(1, NEIGHBOURS + 1))]
            end = place
        else:
            tried = [begin + ahead for ahead in range(NEIGHBOURS + 1)]
            end = np.searchsorted(their_bucket[order], bucket, side="right")
        for candidate in tried:
            hits = np.flatnonzero((partner < 0) & (candidate >= begin) & (candidate < end))
            found = order[candidate[hits]]
            alike = _alike(rows, chosen[hits], others, among[found])
            partner[hits[alike]] = among[found[alike]]
    hits = np.flatnonzero(partner >= 0)
    return chosen[hits], partner[hits]


def _bucket(signed: UInt32[np.ndarray, " n permutations"], band: int) -> UInt64[np.ndarray, " n"]:
    width = PERMUTATIONS // BANDS
    mixed = np.zeros(len(signed), np.uint64)
    for column in range(band * width, (band + 1) * width):
        mixed = (mixed ^ signed[:, column]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _alike(rows: Digests, hits: Numbers, others: Digests, partners: Numbers) -> np.ndarray:
    """Whether both the prompts and the answers of each pair are alike; some pairs at a time, for the memory."""
    alike = np.zeros(len(hits), np.bool_)
    for start in range(0, len(hits), 65536):
        part = slice(start, start + 65536)
        prompts = likeness(rows.prompts[hits[part]], others.prompts[partners[part]])
        answers = likeness(rows.answers[hits[part]], others.answers[partners[part]])
        alike[part] = (prompts >= NEAR) & (answers >= NEAR)
    return alike
