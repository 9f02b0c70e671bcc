"""The text of SQL: the query of a completion, and whether its order is asked for."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

FENCE = re.compile(
    r"```[ \t]*(?:\w+[ \t]*)?\r?\n(.*?)(?:```|\Z)|```(?:sql(?:ite)?\b)?(.*?)```", re.DOTALL | re.IGNORECASE
)
# Quoted names and texts, and comments: what looks like SQL inside them is none. Each pattern gives up at its next own
# opening mark, so that no text takes quadratic time.
QUOTED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^][]*\]")
COMMENT = re.compile(r"--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
OPAQUE = re.compile(f"{QUOTED.pattern}|(?P<comment>{COMMENT.pattern})", re.DOTALL)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """A completion as text: itself, or the content of the last message, which is how TRL passes conversations."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    return content if isinstance(content, str) else ""


def extract_query(completion: str) -> str:
    """The one query of a completion, or an empty string where there is none to run.

    What stands after the last `</think>` counts; of that the last fenced code block, or everything where there is none.
    Prose round a query without a fence is an error of the answer, and so is a second statement.

    A `<think>` that is never closed has no query: the answer was cut off before it began. Where the generation prompt
    of the chat template opened the thinking itself, the completion holds no `<think>`, so that one cut off in its
    thoughts cannot be told from an answer, and is taken for one: `SELECT 1` alone has the same form either way.

    >>> extract_query("Here it is: ```sql\\nSELECT 1;\\n```")
    'SELECT 1'
    >>> extract_query("SELECT 1; DROP TABLE t"), extract_query("I think SELECT 1")
    ('', '')
    >>> extract_query("<think>Perhaps</think>SELECT 1"), extract_query("<think>```sql\\nSELECT 1\\n```")
    ('SELECT 1', '')
    """
    answer = completion.rpartition("</think>")[2]
    if "<think>" in answer:
        return ""
    blocks = FENCE.findall(answer)
    text = next((part for part in blocks[-1] if part), "") if blocks else answer
    bare = OPAQUE.sub(lambda match: " " * len(match.group()), text)  # same places, nothing quoted
    end = bare.find(";")
    if end >= 0 and bare[end:].strip("; \t\r\n"):
        return ""
    starts = re.match(r"\s*(?:SELECT|WITH)\b", bare, re.IGNORECASE)
    return text[: end if end >= 0 else None].strip() if starts else ""


def is_ordered(query: str) -> bool:
    """Whether the outermost query has an ORDER BY: only then is the order of its rows part of the answer.

    >>> is_ordered("SELECT a FROM t ORDER BY b"), is_ordered("SELECT a FROM (SELECT a FROM t ORDER BY b)")
    (True, False)
    """
    # A comment is a space between words, as it is to SQLite; a quoted text is a word of its own.
    bare, depth = OPAQUE.sub(lambda match: " " if match["comment"] else " ' ", query), 0
    for match in re.finditer(r"[()]|\border\s+by\b", bare, re.IGNORECASE):
        if match.group() in "()":
            depth += 1 if match.group() == "(" else -1
        elif depth == 0:
            return True
    return False
