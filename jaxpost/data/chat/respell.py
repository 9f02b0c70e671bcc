"""Control tokens under another spelling: in texts, and in a tokenizer's file."""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Two characters for private use: one stands in what messages spell, the other in what the template does.
SAID, MEANT = "\ue5c3", "\ue5c4"
SAID_FORMS = f"{SAID}|{re.escape(ascii(SAID)[1:-1])}"  # the second is what JSON and Python's repr may make of it


def respell(token: str) -> str:
    """The new spelling of a control token: its first character, the private one, the rest.

    >>> respell("<s>").encode("unicode_escape").decode()
    '<\\\\ue5c4s>'
    """
    return token[:1] + MEANT + token[1:]


def any_of(words: Iterable[str]) -> str:
    """A regular expression for the longest of the words; a word of one character must not be followed by a mark."""
    root: dict[str, Any] = {}
    for word in words:
        node = root
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return _expression(root, 0) or "(?!)"


def _expression(node: dict[str, Any], depth: int) -> str:
    branches = [re.escape(c) + _expression(child, depth + 1) for c, child in node.items() if c]
    if not branches:
        return f"(?!{SAID})" if depth == 1 else ""
    group = f"(?:{'|'.join(branches)})"
    return f"(?:{group}|(?!{SAID}))" if depth == 1 and "" in node else group + "?" * ("" in node)


def respelled_file(text: str, ids: Mapping[str, int]) -> str:
    """A tokenizer.json in which the control tokens have their new spelling, in the vocabulary as well."""
    written = json.loads(text)
    written["post_processor"] = written["truncation"] = written["padding"] = None
    for token in written["added_tokens"]:
        token["content"] = respell(token["content"]) if token["content"] in ids else token["content"]
    model = written["model"]
    new = {token: respell(token) for token in ids}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {new.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    if "merges" in model:  # a merge that makes a control token of text
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if "".join(pair) not in new]
    return json.dumps(written, ensure_ascii=False)
